//! Reverse proxies of the distribution, doing the same job: mutual TLS on both hops, a header matched, one more try on
//! 503, ten seconds for an answer.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use super::{KIND, SERVER, Site, Version};

/// How long a program may take to listen.
const START: Duration = Duration::from_secs(20);

/// A program of the distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
}

impl Program {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    fn path(self) -> Option<PathBuf> {
        let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        let mut paths = folders.iter().map(|folder| Path::new(folder).join(self.name()));
        paths.find(|path| path.exists())
    }
}

/// A running program; it ends with this.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    folder: PathBuf,
    /// Where it takes connections.
    pub address: SocketAddr,
}

impl Peer {
    /// Starts it, if the machine has it.
    #[must_use]
    pub fn start(site: &Site, program: Program, version: Version) -> Option<Self> {
        let path = program.path()?;
        let address = free();
        let name = format!("tulle-bench-{}-{}-{}", program.name(), version, address.port());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder for settings");
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).expect("a file of settings");
        };
        let ((server, server_key), (client, client_key)) =
            (site.ca.server(&[SERVER]), site.ca.server(&["client"]));
        write("ca.pem", &site.ca.root_pem());
        write("server.pem", &format!("{server}{server_key}"));
        write("client.pem", &format!("{client}{client_key}"));
        let (text, arguments) = match program {
            Program::Nginx => (nginx(&folder, address, site.tls, version), vec!["-c"]),
            Program::Haproxy => (haproxy(&folder, address, site.tls, version), vec!["-db", "-f"]),
        };
        write("settings", &text);
        let child = Command::new(path)
            .args(arguments)
            .arg(folder.join("settings"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("errors")).expect("a file for errors"))
            .spawn()
            .expect("the program runs");
        let peer = Self {
            child,
            folder,
            address,
        };
        peer.wait();
        Some(peer)
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&self) {
        let until = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            let errors = fs::read_to_string(self.folder.join("errors")).unwrap_or_default();
            assert!(Instant::now() < until, "it does not listen: {errors}");
            #[allow(clippy::disallowed_methods, reason = "no task waits here")]
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM only.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    listener.local_addr().expect("it is bound")
}

fn nginx(folder: &Path, address: SocketAddr, upstream: SocketAddr, version: Version) -> String {
    let (folder, http2) = (
        folder.display(),
        if version == Version::Two { " http2" } else { "" },
    );
    let (header, value) = (KIND.0.replace('-', "_"), KIND.1);
    format!(
        r#"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_{header} $kind {{ {value} 1; default 0; }}
  upstream app {{ server {upstream}; keepalive 256; keepalive_requests 100000000; keepalive_time 10h; }}
  server {{
    listen {address} ssl{http2};
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem; ssl_protocols TLSv1.3;
    ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;
    keepalive_requests 100000000; keepalive_time 10h;
    location / {{
      if ($kind = 0) {{ return 404; }}
      proxy_pass https://app; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_ssl_certificate {folder}/client.pem; proxy_ssl_certificate_key {folder}/client.pem;
      proxy_ssl_trusted_certificate {folder}/ca.pem; proxy_ssl_verify on; proxy_ssl_name {SERVER};
      proxy_ssl_protocols TLSv1.3; proxy_read_timeout 10s;
      proxy_next_upstream error timeout http_503; proxy_next_upstream_tries 2;
    }}
  }}
}}
"#
    )
}

fn haproxy(folder: &Path, address: SocketAddr, upstream: SocketAddr, version: Version) -> String {
    let (folder, alpn) = (folder.display(), version.alpn());
    let (header, value) = KIND;
    format!(
        "global\n  nbthread 2\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 10s\n  timeout client 60s\n  timeout server 10s\n  \
         timeout http-keep-alive 60s\n  retries 1\n  option redispatch\n  \
         retry-on conn-failure empty-response 503\n  http-reuse always\n\
         frontend f\n  bind {address} ssl crt {folder}/server.pem ca-file {folder}/ca.pem verify required \
         alpn {alpn} ssl-min-ver TLSv1.3\n  acl kind req.hdr({header}) -m str {value}\n  \
         use_backend app if kind\n\
         backend app\n  server a {upstream} ssl crt {folder}/client.pem ca-file {folder}/ca.pem verify required \
         verifyhost {SERVER} sni str({SERVER}) alpn {alpn} ssl-min-ver TLSv1.3 pool-max-conn 256\n"
    )
}
