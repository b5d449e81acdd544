//! Who gets certificates, and whose state folder and root key it is.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_for_placed_identities_and_survive_a_restart() {
    let process = Process::start();
    process.write("namespace.yaml", NAMESPACE);
    process.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    process.ready().await;
    let token = tulle_xds::token::create(&process.state(), "n1").unwrap();
    let other = tulle_xds::token::create(&process.state(), "n2").unwrap();
    let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let ask = async |process: &Process, token: &str| {
        GrpcCa::new(process.channel(token), GrpcCaOptions::default())
            .fetch(&web)
            .await
    };
    let issued = ask(&process, &token).await.unwrap();
    let refused = ask(&process, &other).await;
    let Err(CaError::Status { message, .. }) = refused else {
        panic!("must be refused: {refused:?}");
    };
    assert!(message.contains("POD_NOT_ON_NODE"), "{message}");

    let process = Process::start_in(process.stop().await);
    process.ready().await;
    let again = ask(&process, &token).await.unwrap();
    assert_eq!(issued.roots, again.roots);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_on_the_same_state_is_refused() {
    let process = Process::start();
    process.ready().await;
    let path = |name: &str| process.folder.path().join(name).display().to_string();
    let cli = Cli::parse_from([
        "xds",
        "--config-dir",
        &path("config"),
        "--state-dir",
        &path("state"),
    ]);
    let refused = tulle_xds::run(cli.config, std::future::pending::<&str>()).await;
    assert!(matches!(refused, Err(Error::State(_))), "{refused:?}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loose_root_key_is_refused_as_misuse() {
    use std::os::unix::fs::PermissionsExt as _;
    let process = Process::start();
    process.ready().await;
    let folder = process.stop().await;
    let key = folder.path().join("state/ca/root-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let process = Process::start_in(folder);
    let error = timeout(PATIENCE, process.running)
        .await
        .expect("an end in time")
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().starts_with("T0301"), "{error}");
    assert_eq!(error.exit(), tulle_runtime::exit::Exit::Usage);
}
