//! Faults of the network and of processes, each undone with its value.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tulle_linux::NetNs;
use tulle_runtime::usage;

/// Packets that a namespace drops without a word, until the value ends.
#[derive(Debug)]
pub struct Blackhole {
    namespace: NetNs,
    table: String,
}

/// Which packets of an address are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those to it.
    To,
    /// Those from it.
    From,
    /// All.
    Both,
}

impl Blackhole {
    /// Drops packets of addresses that come into a namespace, whether for itself or to be forwarded.
    #[must_use]
    pub fn new(namespace: &NetNs, addresses: &[IpAddr], direction: Direction) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let table = format!("fault{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut rules = String::new();
        for address in addresses {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            if direction != Direction::From {
                rules.push_str(&format!("        {family} daddr {address} counter drop\n"));
            }
            if direction != Direction::To {
                rules.push_str(&format!("        {family} saddr {address} counter drop\n"));
            }
        }
        let chains = ["prerouting", "output"].map(|hook| {
            format!("    chain {hook} {{\n        type filter hook {hook} priority -350; policy accept;\n{rules}    }}\n")
        });
        nft(
            namespace,
            &format!("table inet {table} {{\n{}}}\n", chains.concat()),
        );
        Self {
            namespace: namespace.clone(),
            table,
        }
    }
}

impl Blackhole {
    /// Packets that were dropped so far.
    #[must_use]
    pub fn packets(&self) -> u64 {
        let listed = run(&self.namespace, "nft", &["list", "table", "inet", &self.table]);
        let counts = listed
            .split("counter packets ")
            .skip(1)
            .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }
}

impl Drop for Blackhole {
    fn drop(&mut self) {
        nft(&self.namespace, &format!("delete table inet {}\n", self.table));
    }
}

/// Loads a text by `nft -f -` inside of a namespace.
pub fn nft(namespace: &NetNs, text: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut child = namespace.spawn(command).expect("nft is installed");
    child
        .stdin
        .take()
        .expect("its input is piped")
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "nft refused:\n{text}");
}

/// Runs a program inside of a namespace to its end and gives what it printed; it must succeed.
pub fn run(namespace: &NetNs, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = namespace
        .spawn(command)
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Limits the open files of a running process: `None` lifts the limit to the hard one.
pub fn limit_files(process: u32, files: Option<u64>) {
    // A soft limit alone: the hard one stays as it was, so that the soft one can go back to it.
    let limit = files.map_or_else(
        || format!("{}:", hard_file_limit(process)),
        |files| format!("{files}:"),
    );
    let status = Command::new("prlimit")
        .args(["--pid", &process.to_string(), &format!("--nofile={limit}")])
        .status()
        .expect("prlimit is installed");
    assert!(status.success(), "prlimit refused {limit} for {process}");
}

fn hard_file_limit(process: u32) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("every process has it");
    line.split_whitespace()
        .nth(4)
        .expect("the hard limit is the second number")
        .to_owned()
}

/// Open files of a process.
#[must_use]
pub fn open_files(process: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// Memory of a process that is its own, in bytes.
#[must_use]
pub fn anonymous_bytes(process: u32) -> u64 {
    usage::memory(usage::Process::Id(process), usage::Memory::Anonymous).unwrap_or(0)
}
