//! The plugin: a short-lived process that asks the agent and passes on its answer.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::reason::Reason;
use tulle_runtime::config::Env;
use tulle_runtime::exit::Exit;

use super::call::{Call, INPUT_BYTES_MAX, Refusal, SUPPORTED, Verb, code};
use super::notes;
use super::protocol::{self, Answer, Failure, MESSAGE_BYTES_MAX, Question, Reply, Request, Sandbox};

/// All of an ADD or CHECK.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// All of a DEL: the agent waits for 2 s at most.
const DEL_WAIT: Duration = Duration::from_secs(4);
/// How long a new pod waits for an agent that is just being restarted.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// How often it is tried meanwhile.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// Whether this process was started by a container runtime as a plugin.
#[must_use]
pub fn is_asked(env: &impl Env) -> bool {
    env.var("CNI_COMMAND").is_some()
}

/// Answers one call on standard output.
#[must_use]
pub fn main(env: &impl Env) -> Exit {
    let mut input = Vec::new();
    let limit = INPUT_BYTES_MAX as u64;
    let read = io::stdin().lock().take(limit).read_to_end(&mut input);
    let outcome = match read {
        Ok(_) => answer(env, &input),
        Err(error) => Err(Refusal::new(
            code::IO,
            "tulle: standard input cannot be read",
            error.to_string(),
        )),
    };
    let (text, exit) = match outcome {
        Ok(text) => (text, Exit::Ok),
        Err(refusal) => {
            let text = serde_json::to_string(&refusal).expect("a refusal has a form in JSON");
            (text, Exit::Failed)
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit,
        Err(_) => Exit::Failed,
    }
}

/// What the call's answer on standard output is.
///
/// # Errors
/// What the runtime is to be told instead.
pub fn answer(env: &impl Env, input: &[u8]) -> Result<String, Refusal> {
    let is_end = env.var("CNI_COMMAND").is_some_and(|verb| verb == "DEL");
    let call = match Call::read(env, input) {
        Ok(call) => call,
        // A failed DEL would keep the sandbox's name reserved, and there is nobody to tell the agent of.
        Err(_) if is_end => return Ok(String::new()),
        Err(refusal) => return Err(refusal),
    };
    let version = call.config.cni_version.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(perform(call)),
        Err(error) => Err(Refusal::new(
            code::IO,
            "tulle: the plugin cannot run",
            error.to_string(),
        )),
    };
    outcome.map_err(|refusal| Refusal {
        cni_version: version,
        ..refusal
    })
}

async fn perform(call: Call) -> Result<String, Refusal> {
    match call.verb {
        Verb::Add => add(call).await,
        Verb::Del => {
            del(call).await;
            Ok(String::new())
        }
        Verb::Check => check(call).await,
        Verb::Status => status(&call.config.socket).await,
        Verb::Gc => gc(call).await,
        Verb::Version => Ok(versions(&call.config.cni_version)),
    }
}

async fn add(mut call: Call) -> Result<String, Refusal> {
    let addresses = call.config.addresses()?;
    let passed_on = call
        .config
        .prev_result
        .as_ref()
        .map(|before| before.get().to_owned());
    let passed_on = passed_on.unwrap_or_default();
    let Some(pod) = call.pod.clone().filter(|pod| !call.config.excludes(pod)) else {
        return Ok(passed_on);
    };
    if call.netns.is_none() {
        return Err(Refusal::new(
            code::ENVIRONMENT,
            "tulle: the variable CNI_NETNS is missing",
            "container runtimes set it to the path of the pod's network namespace",
        ));
    }
    let sandbox = Sandbox {
        container_id: call.container_id,
        pod: pod.clone(),
        netns: call.netns,
        addresses,
        resolver: call.config.take_resolver(),
    };
    let question = Question::Add(sandbox);
    let asked = timeout(ANSWER_WAIT, ask(&call.config.socket, question, CONNECT_WAIT)).await;
    let answer = asked.unwrap_or_else(|_| Err(late()));
    match answer {
        Ok(Answer::Captured | Answer::LeftAlone | Answer::Done) => Ok(passed_on),
        Ok(Answer::Refused(failure)) => Err(refused(code::REFUSED, &failure)),
        Err(error) => {
            let failure = unreachable(&format!("pod {pod} cannot start: "), &call.config.socket, &error);
            Err(refused(code::REFUSED, &failure))
        }
    }
}

/// Tells the agent, or leaves a note for it. There is nothing that the runtime could do better.
async fn del(call: Call) {
    let Some(pod) = call
        .pod
        .filter(|pod| !call.config.exclude_namespaces.contains(&pod.namespace))
    else {
        return;
    };
    let sandbox = Sandbox {
        container_id: call.container_id,
        pod,
        netns: call.netns,
        addresses: Vec::new(),
        resolver: None,
    };
    let question = Question::Del(sandbox.clone());
    let asked = timeout(DEL_WAIT, ask(&call.config.socket, question, Duration::ZERO)).await;
    if matches!(asked, Ok(Ok(Answer::Done))) {
        return;
    }
    if let Err(error) = notes::leave(&call.config.state_dir, &sandbox) {
        // The agent finds out by itself, later.
        let _ = writeln!(
            io::stderr(),
            "tulle: no note of the pod's end can be left: {error}"
        );
    }
}

async fn check(call: Call) -> Result<String, Refusal> {
    let addresses = call.config.addresses()?;
    let Some(pod) = call.pod.clone().filter(|pod| !call.config.excludes(pod)) else {
        return Ok(String::new());
    };
    let sandbox = Sandbox {
        container_id: call.container_id,
        pod,
        netns: call.netns,
        addresses,
        resolver: None,
    };
    let question = Question::Check(sandbox);
    demand(&call.config.socket, question, code::REFUSED).await
}

async fn status(socket: &Path) -> Result<String, Refusal> {
    demand(socket, Question::Status, code::UNAVAILABLE).await
}

async fn gc(call: Call) -> Result<String, Refusal> {
    let keep = call.config.valid_attachments.into_iter();
    let keep = keep.map(|attachment| attachment.container_id).collect();
    demand(&call.config.socket, Question::Gc { keep }, code::REFUSED).await
}

/// Asks what has no other good answer than that it is done.
async fn demand(socket: &Path, question: Question, refused_as: u32) -> Result<String, Refusal> {
    let asked = timeout(ANSWER_WAIT, ask(socket, question, Duration::ZERO)).await;
    match asked.unwrap_or_else(|_| Err(late())) {
        Ok(Answer::Refused(failure)) => Err(refused(refused_as, &failure)),
        Ok(_) => Ok(String::new()),
        Err(error) => Err(refused(refused_as, &unreachable("", socket, &error))),
    }
}

/// What `VERSION` answers; `tulleProtocol` tells an installer whether this program suits its agent.
fn versions(cni_version: &str) -> String {
    serde_json::json!({
        "cniVersion": cni_version,
        "supportedVersions": SUPPORTED,
        "tulleProtocol": protocol::VERSION,
    })
    .to_string()
}

fn refused(code: u32, failure: &Failure) -> Refusal {
    Refusal::new(
        code,
        format!("tulle: {failure}"),
        format!("tulle codes {} says more", failure.code),
    )
}

fn unreachable(what: &str, socket: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Reason::AgentUnreachable,
        format!(
            "{what}the agent of this node cannot be asked at {}: {error}",
            socket.display()
        ),
        "see that it runs, with `tulle status`",
    )
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Asks the agent one question. While nobody listens it is tried again for as long as `patience` lasts.
async fn ask(socket: &Path, question: Question, patience: Duration) -> io::Result<Answer> {
    let mut stream = connect(socket, patience).await?;
    stream.write_all(&Request::new(question).encode()).await?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(MESSAGE_BYTES_MAX));
    reader.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::Error::other("it hung up without an answer"));
    }
    let reply = Reply::decode(&line).map_err(io::Error::other)?;
    Ok(reply.answer)
}

async fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(CONNECT_INTERVAL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    const BEFORE: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.7/24"}]}"#;

    struct Plugin {
        state: tempfile::TempDir,
    }

    impl Plugin {
        fn without_agent() -> Self {
            Self {
                state: tempfile::tempdir().unwrap(),
            }
        }

        fn call(&self, verb: &str, namespace: &str) -> Result<String, Refusal> {
            let folder = self.state.path().display();
            let input = format!(
                r#"{{"cniVersion":"1.0.0","name":"net","type":"tulle-cni","socket":"{folder}/cni.sock",
                    "stateDir":"{folder}","excludeNamespaces":["kube-system"],"prevResult":{BEFORE}}}"#
            );
            let env = MapEnv::default()
                .with("CNI_COMMAND", verb)
                .with("CNI_CONTAINERID", "c1")
                .with("CNI_NETNS", "/run/netns/x")
                .with(
                    "CNI_ARGS",
                    &format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1"),
                );
            answer(&env, input.as_bytes())
        }

        fn notes(&self) -> usize {
            let mut notes = 0;
            notes::take_up(self.state.path(), |_| notes += 1).unwrap();
            notes
        }
    }

    #[test]
    fn without_an_agent_no_pod_starts() {
        let refusal = Plugin::without_agent().call("ADD", "shop").unwrap_err();
        assert_eq!(refusal.code, code::REFUSED);
        assert_eq!(refusal.cni_version, "1.0.0");
        assert!(
            refusal
                .msg
                .starts_with("tulle: pod shop/web cannot start: the agent"),
            "{refusal}"
        );
        assert!(refusal.msg.ends_with("(T0101, agent_unreachable)"), "{refusal}");
    }

    #[test]
    fn pods_of_excluded_namespaces_start_without_an_agent() {
        let plugin = Plugin::without_agent();
        assert_eq!(plugin.call("ADD", "kube-system").unwrap(), BEFORE);
        assert_eq!(plugin.call("DEL", "kube-system").unwrap(), "");
        assert_eq!(plugin.notes(), 0);
    }

    #[test]
    fn without_an_agent_a_pod_ends_and_a_note_is_left() {
        let plugin = Plugin::without_agent();
        assert_eq!(plugin.call("DEL", "shop").unwrap(), "");
        assert_eq!(plugin.call("DEL", "shop").unwrap(), "");
        assert_eq!(plugin.notes(), 1);
    }

    #[test]
    fn without_an_agent_the_plugin_is_not_available() {
        assert_eq!(
            Plugin::without_agent().call("STATUS", "shop").unwrap_err().code,
            code::UNAVAILABLE
        );
    }

    #[test]
    fn the_end_of_a_pod_never_fails() {
        let env = MapEnv::default().with("CNI_COMMAND", "DEL");
        assert_eq!(answer(&env, b"{"), Ok(String::new()));
    }

    #[test]
    fn versions_are_told_without_an_agent() {
        let told = Plugin::without_agent().call("VERSION", "").unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["supportedVersions"], serde_json::json!(SUPPORTED));
        assert_eq!(told["tulleProtocol"], protocol::VERSION);
    }
}
