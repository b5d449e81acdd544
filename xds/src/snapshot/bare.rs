//! Bare workloads, as the older resource type carries them. Few clients ask for them, so that there are none until one does;
//! from then on they are kept with the addresses they are made of.

use std::sync::{Arc, OnceLock};

use crate::engine::table::Table;

/// The bare workloads of one cut; cuts with equal addresses share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bare(Arc<OnceLock<Table>>);

impl Bare {
    /// The workloads among these addresses, made at the first call.
    pub(crate) fn table(&self, addresses: &Table, sequence: u64) -> &Table {
        self.0.get_or_init(|| addresses.bare(sequence))
    }

    /// Those of the next cut, to be kept like its addresses. If nobody has asked until now, whoever asks later begins anew.
    pub(crate) fn next(&self) -> Self {
        let asked = self.0.get().cloned().map(OnceLock::from);
        Self(Arc::new(asked.unwrap_or_default()))
    }

    /// The workloads of a cut that is being made, if anybody asked for them.
    pub(crate) fn asked(&mut self) -> Option<&mut Table> {
        Arc::get_mut(&mut self.0)?.get_mut()
    }
}
