//! The same facts for both ways of putting rules into a namespace.

/// Makes two tests of each function that takes a backend.
macro_rules! with_each_backend {
    ($($test:ident),* $(,)?) => {
        mod netlink {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(tulle_agent::rules::Backend::Netlink).await;
                }
            )*
        }
        mod nft {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(tulle_agent::rules::Backend::Nft).await;
                }
            )*
        }
    };
}

pub(crate) use with_each_backend;
