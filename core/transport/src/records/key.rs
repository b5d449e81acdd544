//! The key of one direction, and how many records it has sealed or opened. It is made from a secret, and so is the next.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf;
use rustls::{AlertDescription, ConnectionTrafficSecrets};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::error::Fault;
use super::format::{HEADER, TAG, header};

/// What is sealed with, and the hash that keys are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Suite {
    fn cipher(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::Chacha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
            Self::Aes128Gcm | Self::Chacha20Poly1305 => hkdf::HKDF_SHA256,
        }
    }

    /// Bytes of a secret: as many as the hash has.
    const fn secret_length(self) -> usize {
        match self {
            Self::Aes256Gcm => 48,
            Self::Aes128Gcm | Self::Chacha20Poly1305 => 32,
        }
    }
}

/// A key in use. Each record has a nonce of its own: its number, under the vector that came with the key.
pub(crate) struct Key {
    suite: Suite,
    secret: Zeroizing<Vec<u8>>,
    cipher: LessSafeKey,
    vector: [u8; 12],
    records: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// A key of the handshake, made from `secret`, which has been used for `records` records.
    pub(crate) fn new(records: u64, given: &ConnectionTrafficSecrets, secret: &[u8]) -> Result<Self, Fault> {
        let (suite, vector) = match given {
            ConnectionTrafficSecrets::Aes128Gcm { iv, .. } => (Suite::Aes128Gcm, iv),
            ConnectionTrafficSecrets::Aes256Gcm { iv, .. } => (Suite::Aes256Gcm, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { iv, .. } => (Suite::Chacha20Poly1305, iv),
            _ => return Err(Fault::Keys("a cipher that is not known here".to_owned())),
        };
        let key = Self::of(suite, secret, records)?;
        // Vector and key come from the same secret: a wrong one would show here, before anything was sealed.
        if key.vector != vector.as_ref() {
            return Err(Fault::Keys("a secret that the key is not made from".to_owned()));
        }
        Ok(key)
    }

    pub(super) fn of(suite: Suite, secret: &[u8], records: u64) -> Result<Self, Fault> {
        let bad = || Fault::Keys("a secret of the wrong length".to_owned());
        if secret.len() != suite.secret_length() {
            return Err(bad());
        }
        let mut key = Zeroizing::new(vec![0; suite.cipher().key_len()]);
        let mut vector = [0; 12];
        expand(suite, secret, b"key", &mut key)?;
        expand(suite, secret, b"iv", &mut vector)?;
        let key = UnboundKey::new(suite.cipher(), &key).map_err(|_| bad())?;
        Ok(Self {
            suite,
            secret: secret.to_vec().into(),
            cipher: LessSafeKey::new(key),
            vector,
            records,
        })
    }

    /// The one that follows a change of keys (RFC 8446, 7.2).
    pub(super) fn next(&self) -> Result<Self, Fault> {
        let mut secret = Zeroizing::new(vec![0; self.secret.len()]);
        expand(self.suite, &self.secret, b"traffic upd", &mut secret)?;
        Self::of(self.suite, &secret, 0)
    }

    /// Records that were sealed or opened with it.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = self.vector;
        for (byte, number) in nonce[4..].iter_mut().zip(self.records.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `body` and then `tail`, whose last byte is the type of the content, to the front of `out`. Says how long
    /// the record is. `body` is read where it is, and written where it goes, in one pass.
    pub(super) fn seal(&mut self, body: &[u8], tail: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        let length = body.len() + tail.len() + TAG;
        let header = header(length);
        let (head, rest) = out[..HEADER + length].split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (sealed, extra) = rest.split_at_mut(body.len());
        let nonce = self.nonce();
        self.cipher
            .seal_out_of_place_scatter(nonce, Aad::from(header), body, sealed, tail, extra)
            .map_err(|_| Fault::Keys("a record could not be sealed".to_owned()))?;
        self.records += 1;
        Ok(HEADER + length)
    }

    /// The same for a body of `length` bytes that lies where it goes already, behind the room for the header.
    pub(super) fn seal_in_place(&mut self, length: usize, kind: u8, out: &mut [u8]) -> Result<usize, Fault> {
        let sealed = length + 1 + TAG;
        let header = header(sealed);
        let (head, rest) = out[..HEADER + sealed].split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (body, extra) = rest.split_at_mut(length);
        let nonce = self.nonce();
        self.cipher
            .seal_in_place_scatter(nonce, Aad::from(header), body, &[kind], extra)
            .map_err(|_| Fault::Keys("a record could not be sealed".to_owned()))?;
        self.records += 1;
        Ok(HEADER + sealed)
    }

    /// Opens a whole record where it lies. What was sealed follows its header.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<&'a mut [u8], Fault> {
        const WRONG: Fault = Fault::broken(
            AlertDescription::BadRecordMac,
            "a record was not sealed with the key of this connection",
        );
        let Some((header, sealed)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(WRONG);
        };
        let opened = self
            .cipher
            .open_in_place(self.nonce(), Aad::from(*header), sealed)
            .map_err(|_| WRONG)?;
        self.records += 1;
        Ok(opened)
    }
}

/// HKDF-Expand-Label without a context (RFC 8446, 7.1).
fn expand(suite: Suite, secret: &[u8], label: &[u8], out: &mut [u8]) -> Result<(), Fault> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let bad = || Fault::Keys("no key could be made".to_owned());
    let length = u16::try_from(out.len()).map_err(|_| bad())?.to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).map_err(|_| bad())?;
    let info = [&length[..], &[label_length], PREFIX, label, &[0]];
    let prk = hkdf::Prk::new_less_safe(suite.hash(), secret);
    let made = prk.expand(&info, Length(out.len())).map_err(|_| bad())?;
    made.fill(out).map_err(|_| bad())
}

/// A key as data: what it is made from, and how far it was used.
#[derive(Serialize, Deserialize)]
struct Plain {
    suite: Suite,
    secret: Vec<u8>,
    records: u64,
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plain = Plain {
            suite: self.suite,
            secret: self.secret.to_vec(),
            records: self.records,
        };
        let result = plain.serialize(serializer);
        drop(Zeroizing::new(plain.secret));
        result
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let plain = Plain::deserialize(deserializer)?;
        let secret = Zeroizing::new(plain.secret);
        Self::of(plain.suite, &secret, plain.records).map_err(D::Error::custom)
    }
}
