//! `tulle node`: nodes without Kubernetes.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tulle_runtime::config::parse_duration;
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::{Form, print, table};
use crate::running::Kind;

/// Let nodes into the mesh, and upgrade their proxies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tulle node token --node n1 --ttl 1h          on the control plane's machine
  tulle node join --token-file t --address https://mesh.example:15012     on the node
  tulle node upgrade                            on the node, once the new binary is in place
  AUTH_TOKEN=/var/lib/tulle/node/node.pem XDS_ROOT_CA=/var/lib/tulle/node/root-cert.pem tulle ztunnel")]
pub(crate) struct Node {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token that one node can join with, once
    Token {
        /// The node: what its proxy and agent call NODE_NAME
        #[arg(long, value_name = "NODE")]
        node: String,
        /// How long it can be used, 24h at most
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Exchange a token for this node's certificate
    ///
    /// The control plane must show the root that the token was made with; nothing is sent to any other.
    Join {
        /// The control plane
        #[arg(long, value_name = "https://HOST:PORT")]
        address: String,
        /// File with the token; `-` reads it from standard input
        #[arg(long, value_name = "FILE", default_value = "-")]
        token_file: PathBuf,
        /// Name to verify instead of the address's host
        #[arg(long, value_name = "NAME")]
        server_name: Option<String>,
        /// Folder for the certificate with its key, and for the roots
        #[arg(long, value_name = "DIR", default_value = "/var/lib/tulle/node")]
        dir: PathBuf,
    },
    /// Start the next generation of this node's proxy from the binary on disk, and wait until it serves
    ///
    /// Open connections stay with the generation that has them. Needs a proxy that runs as `tulle ztunnel --supervise`.
    Upgrade {
        /// Whose proxy; needed where several run on this machine
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Debug, Deserialize, Serialize)]
struct Token {
    token: String,
}

pub(crate) async fn run(node: Node) -> anyhow::Result<Exit> {
    match node.command {
        Command::Token { node: name, ttl } => {
            let control = node.reading.run_dir().component(Kind::Control, "");
            let asked = json!({"node": name, "seconds": ttl.as_secs()});
            let token: Token = control.ask("/node/token", &asked).await?;
            if node.reading.output() == Form::Table {
                println!("{}", token.token);
            } else {
                print(Form::Json, "node.token", &[token], || table(&[]))?;
            }
            Ok(Exit::Ok)
        }
        Command::Upgrade { node: name } => super::upgrade::run(&node.reading, name).await,
        Command::Join {
            address,
            token_file,
            server_name,
            dir,
        } => {
            let token = if token_file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin())?
            } else {
                std::fs::read_to_string(&token_file)?
            };
            let joined = tulle_xds::join_node(&address, server_name, &token, &dir).await?;
            println!(
                "node {joined} has joined; its certificate is {}",
                dir.join("node.pem").display()
            );
            Ok(Exit::Ok)
        }
    }
}
