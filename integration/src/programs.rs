//! Real clients and servers as processes in pods.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tulle_world::{Pod, Process};

use crate::mesh::eventually;

/// Runs a program in a pod to its end; what it printed on either way out, and whether it succeeded.
#[must_use]
pub fn run(pod: &Pod, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = finish(pod, program, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

/// Runs a program in a pod to its end and gives what it printed; it must succeed.
#[must_use]
pub fn output_of(pod: &Pod, program: &str, arguments: &[&str]) -> String {
    let output = finish(pod, program, arguments);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let status = output.status;
    assert!(
        status.success(),
        "{program} {arguments:?}: {status}\n{stdout}\n{stderr}"
    );
    stdout.into_owned()
}

fn finish(pod: &Pod, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = pod
        .namespace()
        .spawn(command)
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.wait_with_output().unwrap()
}

/// Starts a server in a pod and waits until its port answers inside of the pod.
pub async fn serve(pod: &Pod, program: &str, arguments: &[&str], port: u16) -> Process {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = pod.spawn(program, command).unwrap();
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listening = eventually(async || {
        let attempt = pod.namespace().run_async(move || TcpStream::connect(own)).await;
        attempt.is_ok_and(|connected| connected.is_ok())
    });
    assert!(listening.await, "{program} listens on {port}");
    server
}

/// Starts nginx in a pod, with its files in this folder and one server that is configured like this; waits for its port.
pub async fn nginx(pod: &Pod, folder: &Path, port: u16, server: &str) -> Process {
    std::fs::create_dir_all(folder).unwrap();
    let root = folder.display();
    let configuration = format!(
        "user root root;\ndaemon off;\nmaster_process off;\npid {root}/pid;\nerror_log {root}/error.log;\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ {server} }} }}\n"
    );
    let conf = folder.join("nginx.conf");
    std::fs::write(&conf, configuration).unwrap();
    let (prefix, conf) = (root.to_string(), conf.display().to_string());
    serve(pod, "nginx", &["-p", &prefix, "-c", &conf], port).await
}
