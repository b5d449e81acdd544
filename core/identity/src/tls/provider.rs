//! The cryptography behind TLS: the one place that names a library, so that another can be chosen here.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;

/// Which key exchange groups a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 preferred; X25519, P-256 and P-384 for peers without it.
    #[default]
    Standard,
    /// X25519MLKEM768 and nothing else (`COMPLIANCE_POLICY=pqc`).
    PostQuantumOnly,
}

static STANDARD: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(KeyExchange::Standard));
static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(KeyExchange::PostQuantumOnly));

/// The provider for these groups. It is always passed on explicitly; no process default is read or set.
pub(crate) fn crypto(exchange: KeyExchange) -> Arc<CryptoProvider> {
    Arc::clone(match exchange {
        KeyExchange::Standard => &STANDARD,
        KeyExchange::PostQuantumOnly => &POST_QUANTUM,
    })
}

fn build(exchange: KeyExchange) -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite, kx_group};
    let kx_groups = match exchange {
        KeyExchange::Standard => {
            vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ]
        }
        KeyExchange::PostQuantumOnly => vec![kx_group::X25519MLKEM768],
    };
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups,
        ..aws_lc_rs::default_provider()
    })
}

/// Turns an encoded key into one that signs. The library keeps its own copy, and clears it when dropped.
pub(crate) fn signing_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    aws_lc_rs::sign::any_supported_type(der)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CipherSuite, NamedGroup};

    fn groups(exchange: KeyExchange) -> Vec<NamedGroup> {
        crypto(exchange)
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect()
    }

    #[test]
    fn post_quantum_group_is_preferred() {
        let expected = [
            NamedGroup::X25519MLKEM768,
            NamedGroup::X25519,
            NamedGroup::secp256r1,
            NamedGroup::secp384r1,
        ];
        assert_eq!(groups(KeyExchange::Standard), expected);
        assert_eq!(groups(KeyExchange::PostQuantumOnly), [NamedGroup::X25519MLKEM768]);
    }

    #[test]
    fn only_two_suites_are_offered() {
        let provider = crypto(KeyExchange::Standard);
        let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| suite.suite()).collect();
        let expected = [
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
        ];
        assert_eq!(suites, expected);
    }
}
