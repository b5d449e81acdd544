//! The cryptography behind TLS: the one place that names a library, so that another can be chosen here.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CipherSuite, NamedGroup};

/// Which key exchange groups a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 preferred; X25519, P-256 and P-384 for peers without it.
    #[default]
    Standard,
    /// X25519MLKEM768 and nothing else (`COMPLIANCE_POLICY=pqc`).
    PostQuantumOnly,
}

/// Which library does the cryptography of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Library {
    /// aws-lc.
    #[cfg_attr(not(feature = "boring"), default)]
    AwsLc,
    /// BoringSSL; in builds with the feature `boring` it is the one in use.
    #[cfg(feature = "boring")]
    #[default]
    Boring,
}

impl Library {
    /// Those that this build has.
    pub const ALL: &'static [Self] = &[
        Self::AwsLc,
        #[cfg(feature = "boring")]
        Self::Boring,
    ];

    /// Its name, for logs and dumps.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc",
            #[cfg(feature = "boring")]
            Self::Boring => "BoringSSL",
        }
    }

    fn provider(self) -> CryptoProvider {
        match self {
            Self::AwsLc => aws_lc_rs::default_provider(),
            #[cfg(feature = "boring")]
            Self::Boring => boring_rustls_provider::provider(),
        }
    }

    /// The provider of this library for these groups. Suites and groups are picked by name and put into our order:
    /// libraries order and offer them differently.
    pub(crate) fn crypto(self, exchange: KeyExchange) -> CryptoProvider {
        let all = self.provider();
        let group = |name: &NamedGroup| all.kx_groups.iter().copied().find(|group| group.name() == *name);
        let suite = |name: &CipherSuite| {
            all.cipher_suites
                .iter()
                .copied()
                .find(|suite| suite.suite() == *name)
        };
        CryptoProvider {
            kx_groups: exchange.groups().iter().filter_map(group).collect(),
            cipher_suites: exchange.suites().iter().filter_map(suite).collect(),
            ..all
        }
    }
}

impl KeyExchange {
    /// In order of preference. Four rounds of fourteen less are a fifth of what the cipher costs; who asks for
    /// nothing but post-quantum groups also wants the longer key first (decision 0018).
    fn suites(self) -> &'static [CipherSuite] {
        const SHORT: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;
        const LONG: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
        match self {
            Self::Standard => &[SHORT, LONG],
            Self::PostQuantumOnly => &[LONG, SHORT],
        }
    }

    /// In order of preference.
    fn groups(self) -> &'static [NamedGroup] {
        match self {
            Self::Standard => &[
                NamedGroup::X25519MLKEM768,
                NamedGroup::X25519,
                NamedGroup::secp256r1,
                NamedGroup::secp384r1,
            ],
            Self::PostQuantumOnly => &[NamedGroup::X25519MLKEM768],
        }
    }
}

static STANDARD: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(KeyExchange::Standard));
static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(KeyExchange::PostQuantumOnly));

fn build(exchange: KeyExchange) -> Arc<CryptoProvider> {
    Arc::new(Library::default().crypto(exchange))
}

/// The provider for these groups. It is always passed on explicitly; no process default is read or set.
pub(crate) fn crypto(exchange: KeyExchange) -> Arc<CryptoProvider> {
    Arc::clone(match exchange {
        KeyExchange::Standard => &STANDARD,
        KeyExchange::PostQuantumOnly => &POST_QUANTUM,
    })
}

/// Turns an encoded key into one that signs. The library keeps its own copy.
pub(crate) fn signing_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    crypto(KeyExchange::Standard)
        .key_provider
        .load_private_key(der.clone_key())
}

/// Puts chain and key together.
///
/// # Errors
/// When the key cannot be used, or is not the leaf's; the latter is told apart by [`is_other_key`].
pub(crate) fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, rustls::Error> {
    // Not every library says what the public half of a key is.
    let checked = CertifiedKey::new(chain.clone(), aws_lc_rs::sign::any_supported_type(key)?);
    checked.keys_match()?;
    Ok(CertifiedKey::new(chain, signing_key(key)?))
}

/// Whether a key was refused because it is that of another certificate.
pub(crate) fn is_other_key(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InconsistentKeys(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(library: Library, exchange: KeyExchange) -> Vec<NamedGroup> {
        library
            .crypto(exchange)
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
        for library in Library::ALL {
            assert_eq!(groups(*library, KeyExchange::Standard), expected, "{library:?}");
            let only = groups(*library, KeyExchange::PostQuantumOnly);
            assert_eq!(only, [NamedGroup::X25519MLKEM768], "{library:?}");
        }
    }

    #[test]
    fn only_two_suites_are_offered() {
        let suites = |library: &Library, exchange| {
            let provider = library.crypto(exchange);
            provider
                .cipher_suites
                .iter()
                .map(|suite| suite.suite())
                .collect::<Vec<_>>()
        };
        let [short, long] = [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ];
        for library in Library::ALL {
            let standard = suites(library, KeyExchange::Standard);
            assert_eq!(standard, [short, long], "{library:?}");
            let only = suites(library, KeyExchange::PostQuantumOnly);
            assert_eq!(only, [long, short], "{library:?}");
        }
    }
}
