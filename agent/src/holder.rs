//! Which process holds a port in a namespace, for whoever has to move it.

use std::fs;
use std::io;
use std::path::Path;

use crate::sock_diag;

/// Processes that are looked at in one search.
const PROCESSES_MAX: usize = 1 << 16;
/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 1 << 14;

/// The process that holds a port in the calling thread's namespace: its name and id. Nothing where none is seen, as in
/// another process namespace.
#[must_use]
pub(crate) fn of_port_here(port: u16, udp: bool) -> Option<String> {
    let inodes = sock_diag::inodes_at_here(port, udp).ok()?;
    of_sockets(Path::new("/proc"), &inodes)
}

fn of_sockets(proc_dir: &Path, inodes: &[u32]) -> Option<String> {
    let targets: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir(proc_dir).ok()?.flatten().take(PROCESSES_MAX);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids
        .into_iter()
        .find(|pid| holds(&proc_dir.join(pid.to_string()), &targets).unwrap_or(false))?;
    let name = fs::read_to_string(proc_dir.join(format!("{pid}/comm"))).unwrap_or_default();
    // A program chooses its name; it is shown to people.
    Some(format!("{} (pid {pid})", name.trim_end().escape_debug()))
}

fn holds(process: &Path, targets: &[String]) -> io::Result<bool> {
    let descriptors = fs::read_dir(process.join("fd"))?.flatten().take(DESCRIPTORS_MAX);
    Ok(descriptors.into_iter().any(|descriptor| {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        targets.iter().any(|wanted| target == Path::new(wanted))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_listener_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = of_port_here(port, false).unwrap();
        assert!(
            holder.ends_with(&format!("(pid {})", std::process::id())),
            "{holder}"
        );
        drop(listener);
        assert_eq!(of_port_here(port, false), None);
    }

    #[test]
    fn a_holder_of_a_port_for_datagrams_is_another_one() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(of_port_here(port, true).is_some());
    }
}
