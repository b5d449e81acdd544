//! The key of one direction, and how many records it has sealed or opened.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{AlertDescription, ConnectionTrafficSecrets};

use super::error::Fault;
use super::format::{HEADER, TAG, header};

/// A key in use. Each record has a nonce of its own: its number, under the vector that came with the key.
pub(crate) struct Key {
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
    /// A key of the handshake, which has been used for `records` records.
    pub(crate) fn new(records: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, Fault> {
        let (algorithm, key, vector) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Fault::Keys("a cipher that is not known here".to_owned())),
        };
        Self::of(algorithm, key.as_ref(), vector.as_ref(), records)
    }

    pub(super) fn of(
        algorithm: &'static Algorithm,
        key: &[u8],
        vector: &[u8],
        records: u64,
    ) -> Result<Self, Fault> {
        let bad = || Fault::Keys("a key of the wrong length".to_owned());
        let key = UnboundKey::new(algorithm, key).map_err(|_| bad())?;
        Ok(Self {
            cipher: LessSafeKey::new(key),
            vector: vector.try_into().map_err(|_| bad())?,
            records,
        })
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
