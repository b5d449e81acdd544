use super::*;

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

struct Node {
    folder: tempfile::TempDir,
    installation: Installation,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let installation = Installation {
            bin_dir: folder.path().join("bin"),
            conf_dir: folder.path().join("net.d"),
            entry: Entry {
                socket: "/run/cni.sock".into(),
                state_dir: "/var/lib/tulle".into(),
                exclude_namespaces: Vec::new(),
            },
        };
        fs::create_dir(&installation.conf_dir).unwrap();
        Self { folder, installation }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.installation.conf_dir.join(name), text).unwrap();
    }

    fn is_chained(&self, name: &str) -> bool {
        fs::read_to_string(self.installation.conf_dir.join(name)).is_ok_and(|text| text.contains(PLUGIN))
    }

    fn has_program(&self) -> bool {
        self.folder.path().join("bin").join(PLUGIN).is_file()
    }
}

#[tokio::test]
async fn the_primary_list_is_the_first_by_name() {
    let node = Node::new();
    node.write("99-loopback.conf", r#"{"type": "loopback"}"#);
    node.write("10-net.conflist", LIST);
    node.write("05-net.conflist.old", LIST);
    node.installation.install().await.unwrap();
    assert!(node.is_chained("10-net.conflist") && node.has_program());
    assert!(!node.is_chained("99-loopback.conf") && !node.is_chained("05-net.conflist.old"));
}

#[tokio::test]
async fn without_a_list_the_program_waits_too() {
    let node = Node::new();
    assert!(matches!(
        node.installation.install().await,
        Err(InstallError::NoList(_))
    ));
    assert!(!node.has_program());
}

#[tokio::test]
async fn what_was_installed_is_taken_away_whole() {
    let node = Node::new();
    node.write("10-net.conflist", LIST);
    node.installation.install().await.unwrap();
    node.installation.uninstall().unwrap();
    assert!(!node.is_chained("10-net.conflist") && !node.has_program());
    node.installation.uninstall().unwrap();
}

#[tokio::test]
async fn a_list_that_another_installer_rewrote_is_put_right_within_a_second() {
    let node = Node::new();
    node.write("10-net.conflist", LIST);
    let keeping = node.installation.clone().keep();
    let rewrite = async {
        let chained = async || {
            while !node.is_chained("10-net.conflist") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        chained().await;
        node.write("10-net.conflist", LIST);
        tokio::time::timeout(Duration::from_secs(1), chained())
            .await
            .expect("within a second");
    };
    tokio::select! {
        () = keeping => unreachable!("it keeps for ever"),
        done = tokio::time::timeout(Duration::from_secs(30), rewrite) => done.unwrap(),
    }
}

#[tokio::test]
async fn a_program_that_does_not_understand_the_agent_is_replaced() {
    let node = Node::new();
    node.write("10-net.conflist", LIST);
    node.installation.install().await.unwrap();
    let program = node.folder.path().join("bin").join(PLUGIN);
    let old = "#!/bin/sh\necho '{\"tulleProtocol\": 0}'\n";
    fs::write(&program, old).unwrap();
    node.installation.install().await.unwrap();
    assert_ne!(fs::read(&program).unwrap(), old.as_bytes());
}

#[tokio::test]
async fn a_program_that_understands_the_agent_is_left_alone() {
    let node = Node::new();
    node.write("10-net.conflist", LIST);
    node.installation.install().await.unwrap();
    let program = node.folder.path().join("bin").join(PLUGIN);
    let other = format!("#!/bin/sh\necho '{{\"tulleProtocol\": {}}}'\n", protocol::VERSION);
    fs::write(&program, &other).unwrap();
    node.installation.install().await.unwrap();
    assert_eq!(fs::read(&program).unwrap(), other.as_bytes());
}

#[tokio::test]
async fn a_program_that_is_still_being_written_is_asked_when_it_is_whole() {
    let node = Node::new();
    node.write("10-net.conflist", LIST);
    node.installation.install().await.unwrap();
    let program = node.folder.path().join("bin").join(PLUGIN);
    let other = format!(
        "#!/bin/sh\nexec echo '{{\"tulleProtocol\": {}}}'\n",
        protocol::VERSION
    );
    fs::write(&program, &other).unwrap();
    let writer = fs::File::options().append(true).open(&program).unwrap();
    let written = async {
        // One turn of the scheduler: the program is busy when it is asked for the first time.
        tokio::task::yield_now().await;
        drop(writer);
    };
    let (installed, ()) = tokio::join!(node.installation.install(), written);
    installed.unwrap();
    assert_eq!(fs::read(&program).unwrap(), other.as_bytes());
}
