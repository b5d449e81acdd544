//! What a process used so far: CPU time and resident memory, in the units of the tables.

use tulle_runtime::usage::{self, Memory, Process};

/// CPU time of all threads of a process, those that ended included, in seconds.
pub(super) fn cpu_seconds(process: u32) -> f64 {
    let cpu = usage::cpu(Process::Id(process));
    cpu.expect("it runs").as_secs_f64()
}

/// Resident memory of a process, in MiB.
pub(super) fn resident_mib(process: u32) -> f64 {
    let bytes = usage::memory(Process::Id(process), Memory::Resident);
    bytes.expect("it runs") as f64 / f64::from(1 << 20)
}
