//! How the state of a connection is written down, where `serde` does not know it by itself. What it belongs to says which
//! parts are data; tasks that wait are not among them, and ask again.

/// Bytes, in whatever holds them.
pub(crate) mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: AsRef<[u8]>, S: Serializer>(
        bytes: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(bytes.as_ref())
    }

    pub(crate) fn deserialize<'de, T: FromIterator<u8>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

/// Chunks of bytes, in order.
pub(crate) mod chunks {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        chunks: &VecDeque<Bytes>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(chunks.iter().map(|chunk| &chunk[..]))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<VecDeque<Bytes>, D::Error> {
        let chunks = Vec::<Vec<u8>>::deserialize(deserializer)?;
        Ok(chunks.into_iter().map(Bytes::from).collect())
    }
}

/// Why something ended. It is never written down: nothing goes on elsewhere that has ended here.
pub(crate) mod unless_ended {
    use serde::ser::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T, S: Serializer>(end: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match end {
            None => serializer.serialize_unit(),
            Some(_) => Err(S::Error::custom("the connection has ended")),
        }
    }

    pub(crate) fn deserialize<'de, T, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        <()>::deserialize(deserializer).map(|()| None)
    }
}
