//! What a machine needs beyond the Rust toolchain, and how it gets it.

use std::path::Path;
use std::process::{Command, Stdio};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NFT: Program = Program {
    program: "nft",
    package: "nftables",
    why: "stands in for kube-proxy in the sample world, and checks our packet rules in tests",
};

/// What `tulle up --demo` runs.
pub(crate) const FOR_THE_DEMO: &[Program] = &[NFT];

/// What the tests run: real clients and servers.
pub(crate) const FOR_THE_TESTS: &[Program] = &[
    NFT,
    Program {
        program: "curl",
        package: "curl",
        why: "HTTP client",
    },
    Program {
        program: "nginx",
        package: "nginx-light",
        why: "HTTP server",
    },
    Program {
        program: "openssl",
        package: "openssl",
        why: "client and server of TLS",
    },
    Program {
        program: "cmake",
        package: "cmake",
        why: "builds BoringSSL, the second TLS library",
    },
    Program {
        program: "clang",
        package: "clang",
        why: "compiles BoringSSL",
    },
    Program {
        program: "libclang.so",
        package: "libclang-dev",
        why: "reads the headers of BoringSSL",
    },
    Program {
        program: "redis-server",
        package: "redis-server",
        why: "server that clients keep connections to",
    },
    Program {
        program: "redis-cli",
        package: "redis-tools",
        why: "its client",
    },
    Program {
        program: "h2load",
        package: "nghttp2-client",
        why: "load of HTTP/2",
    },
    Program {
        program: "nghttpx",
        package: "nghttp2-proxy",
        why: "client and server of tunnels of another make",
    },
    Program {
        program: "/usr/lib/python3/dist-packages/h2/__init__.py",
        package: "python3-h2",
        why: "frames of HTTP/2 of another make",
    },
    Program {
        program: "wrk",
        package: "wrk",
        why: "load of HTTP/1.1",
    },
    Program {
        program: "/usr/lib/python3/dist-packages/grpc/__init__.py",
        package: "python3-grpcio",
        why: "client and server of gRPC",
    },
    Program {
        program: "/usr/lib/python3/dist-packages/websockets/__init__.py",
        package: "python3-websockets",
        why: "client and server of WebSocket",
    },
    Program {
        program: "/usr/lib/python3/dist-packages/aiosmtpd/__init__.py",
        package: "python3-aiosmtpd",
        why: "server that speaks first",
    },
    Program {
        program: "/usr/lib/python3/dist-packages/pymysql/__init__.py",
        package: "python3-pymysql",
        why: "client of MySQL",
    },
    Program {
        program: "containerd",
        package: "containerd",
        why: "container runtime that starts pods in the tests",
    },
    Program {
        program: "runc",
        package: "runc",
        why: "what it runs containers with",
    },
    Program {
        program: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        why: "network of those pods, which our plugin is chained behind",
    },
    Program {
        program: "busybox",
        package: "busybox-static",
        why: "what runs in those pods",
    },
    Program {
        program: "conntrack",
        package: "conntrack",
        why: "shows what the kernel tracks",
    },
    Program {
        program: "haproxy",
        package: "haproxy",
        why: "reverse proxy beside the waypoint in measurements",
    },
    Program {
        program: "iperf3",
        package: "iperf3",
        why: "bulk traffic",
    },
    Program {
        program: "ip",
        package: "iproute2",
        why: "sets links of the tests' own namespaces",
    },
    Program {
        program: "ping",
        package: "iputils-ping",
        why: "ICMP client",
    },
    Program {
        program: "sysctl",
        package: "procps",
        why: "sets limits of the tests' own namespaces",
    },
];

/// Takes the refusal to install out of the arguments.
pub(crate) fn may_install(arguments: &mut Vec<String>) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != "--no-install");
    #[allow(clippy::disallowed_methods, reason = "this task has no configuration layers")]
    let refused = std::env::var("TULLE_NO_INSTALL").is_ok_and(|value| value == "1");
    arguments.len() == before && !refused
}

/// Installs the packages of the programs that are missing.
pub(crate) fn ensure(programs: &[Program], may_install: bool) -> Result<(), String> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !is_there(program.program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("── missing programs");
    for program in &missing {
        println!(
            "   {} ({}; Debian package {})",
            program.program, program.why, program.package
        );
    }
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !may_install {
        return Err(format!(
            "not installed, as asked; install them by hand: {by_hand}"
        ));
    }
    if !is_there("apt-get") {
        return Err(format!("no apt-get here; on Debian it would be: {by_hand}"));
    }
    println!("   installing them now; refuse with --no-install or TULLE_NO_INSTALL=1");
    apt_get(&["update", "-qq"])?;
    let install = ["install", "--yes", "-qq", "--no-install-recommends"];
    apt_get(&install.iter().chain(&packages).copied().collect::<Vec<_>>())
        .map_err(|error| format!("{error}; by hand: {by_hand}"))
}

/// Runs apt-get with the arguments while no package may start a service: the tests start what they need themselves.
/// A policy that is there already stays.
const APT_GET: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy" || exit
fi
apt-get "$@"
"#;

/// Runs apt-get as root, by sudo where we are not.
fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = if is_root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("sudo");
        command.args(["--preserve-env=DEBIAN_FRONTEND", "sh"]);
        command
    };
    command.args(["-c", APT_GET, "apt-get"]).args(arguments);
    match command.env("DEBIAN_FRONTEND", "noninteractive").status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("apt-get {} failed ({status})", arguments.join(" "))),
        Err(error) => Err(format!("apt-get {} cannot be run: {error}", arguments.join(" "))),
    }
}

/// Whether a program is on the path, or where Debian keeps programs for administrators.
fn is_there(program: &str) -> bool {
    #[allow(clippy::disallowed_methods, reason = "this task has no configuration layers")]
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
        || is_library(program)
}

/// Whether it is a library of the LLVM project, which Debian keeps by version.
fn is_library(name: &str) -> bool {
    // Beside the libraries there are folders called after programs, such as `clang` and `cmake`.
    if !name.ends_with(".so") {
        return false;
    }
    let versions = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    versions
        .filter(|folder| folder.file_name().to_string_lossy().starts_with("llvm-"))
        .any(|folder| folder.path().join("lib").join(name).is_file())
}

/// The path with the folders where Debian keeps programs for administrators; users do not have them in theirs.
pub(crate) fn path() -> String {
    #[allow(clippy::disallowed_methods, reason = "this task has no configuration layers")]
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// How the tests get rights to make network namespaces.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Namespaces {
    Root,
    UserNamespace,
}

impl Namespaces {
    /// Root may make them, unless it lacks the capability; others need a user namespace. It is tried here, so that no
    /// kernel test is skipped for want of rights in a run that then calls itself complete.
    pub(crate) fn find() -> Result<Self, String> {
        let works = |arguments: &[&str]| {
            let mut trial = Command::new("unshare");
            trial
                .args(arguments)
                .args(["--net", "true"])
                .stderr(Stdio::null());
            trial.status().is_ok_and(|status| status.success())
        };
        if is_root() && works(&[]) {
            return Ok(Self::Root);
        }
        if works(&["--user", "--map-root-user"]) {
            return Ok(Self::UserNamespace);
        }
        Err(
            "the kernel tests need root with CAP_SYS_ADMIN, or user namespaces; allow them: \
             sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 \
             (with AppArmor also kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
                .to_owned(),
        )
    }

    /// A command that runs with those rights.
    pub(crate) fn inside(self, program: &str, arguments: &[&str], folder: &Path) -> Command {
        let mut command = match self {
            Self::Root => Command::new(program),
            Self::UserNamespace => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "--net", program]);
                command
            }
        };
        command.args(arguments).current_dir(folder).env("PATH", path());
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_beside_libraries_is_no_program() {
        for name in ["clang", "cmake", "no-such-library.so"] {
            assert!(!is_library(name), "{name}");
        }
    }
}
