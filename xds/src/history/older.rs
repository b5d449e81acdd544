//! Generations of the older form, which list every object; they are read, and not written any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tulle_k8s::object::Pool;
use tulle_model::Str;

use super::pages::Record;
use super::{History, Manifest, sha256};
use crate::source::folder::parse;

/// One object of a generation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Recorded {
    sha256: Str,
    /// Generation whose file holds the object.
    stored: u64,
    /// File of the configuration folder that defined it.
    file: Str,
    /// Generation that brought this form.
    generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stale_since: Option<u64>,
    first_seen: Timestamp,
}

impl History {
    /// The objects of a generation of the older form.
    pub(super) fn older_objects(&self, manifest: &Manifest) -> io::Result<Vec<Record>> {
        let stored: BTreeSet<u64> = manifest.objects.iter().map(|recorded| recorded.stored).collect();
        let mut written: BTreeMap<Str, String> = BTreeMap::new();
        for generation in stored {
            let text = fs::read_to_string(self.root.join(format!("{generation}.objects")))?;
            let lines = text.lines();
            written.extend(lines.map(|line| (sha256(line.as_bytes()), line.to_owned())));
        }
        let records = manifest.objects.iter().map(|recorded| {
            let written = written.get(&recorded.sha256).ok_or(io::ErrorKind::InvalidData)?;
            let (key, _) = parse::restore(written, &mut Pool::default()).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Record {
                name: key.to_string().into(),
                file: recorded.file.clone(),
                generation: recorded.generation,
                stale_since: recorded.stale_since,
                first_seen: recorded.first_seen,
                written: written.clone().into(),
            })
        });
        records.collect()
    }
}
