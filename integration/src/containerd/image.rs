//! The image of every container of the tests, made here: a static busybox that waits.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Its name.
pub(super) const NAME: &str = "localhost/pause:1";
/// Longer than any test.
const FOREVER_S: &str = "2147483647";

/// Makes the image below `folder` and gives it to the runtime at `socket`.
pub(super) fn import(folder: &Path, socket: &Path) {
    let image = folder.join("image");
    if image.exists() {
        return;
    }
    let layer = image.join("layer");
    for part in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(layer.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    symlink("busybox", layer.join("bin/sh")).unwrap();
    run(&image, "tar", &["-C", "layer", "-cf", "layer.tar", "."]);
    let digest = run(&image, "sha256sum", &["layer.tar"]);
    let digest = digest.split_whitespace().next().unwrap();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", FOREVER_S], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(image.join("config.json"), config.to_string()).unwrap();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    let parts = ["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"];
    run(&image, "tar", &parts);
    let socket = socket.display().to_string();
    let snapshotter = ["--snapshotter", "native", "image.tar"];
    let import = ["-a", &socket, "-n", "k8s.io", "images", "import"];
    run(&image, "ctr", &[&import[..], &snapshotter].concat());
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
