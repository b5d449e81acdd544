//! A network configuration list with and without our entry: pure.

use serde_json::{Map, Value, json};

use super::Entry;

/// Text that cannot be chained into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is no JSON object.
    #[error("it is no network configuration: {0}")]
    Unreadable(String),
    /// It is a single plugin's configuration.
    #[error(
        "it configures a single plugin and cannot be chained into; write it as a list (a .conflist with `plugins`)"
    )]
    Single,
}

/// The list with our entry at its end; nothing if it is so already.
///
/// # Errors
/// When the text is no list.
pub fn with_last(text: &str, plugin: &str, entry: &Entry) -> Result<Option<String>, ListError> {
    let mut list = parse(text)?;
    let plugins = plugins(&mut list)?;
    let wanted = described(plugin, entry);
    let ours = plugins.iter().filter(|other| is_of(other, plugin)).count();
    if ours == 1 && plugins.last() == Some(&wanted) {
        return Ok(None);
    }
    plugins.retain(|other| !is_of(other, plugin));
    plugins.push(wanted);
    Ok(Some(print(list)))
}

/// The list without our entry; nothing if there is none.
///
/// # Errors
/// When the text is no list.
pub fn without(text: &str, plugin: &str) -> Result<Option<String>, ListError> {
    let mut list = parse(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|other| !is_of(other, plugin));
    Ok((plugins.len() < before).then(|| print(list)))
}

fn parse(text: &str) -> Result<Map<String, Value>, ListError> {
    serde_json::from_str(text).map_err(|error| ListError::Unreadable(error.to_string()))
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, ListError> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or(ListError::Single)
}

fn is_of(entry: &Value, plugin: &str) -> bool {
    entry["type"] == plugin
}

fn described(plugin: &str, entry: &Entry) -> Value {
    json!({
        "type": plugin,
        // Runtimes tell what each pod's resolv.conf will say.
        "capabilities": { "dns": true },
        "socket": entry.socket,
        "stateDir": entry.state_dir,
        "excludeNamespaces": entry.exclude_namespaces,
    })
}

fn print(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;

    fn entry() -> Entry {
        Entry {
            socket: "/run/cni.sock".into(),
            state_dir: "/var/lib/tulle".into(),
            exclude_namespaces: vec!["kube-system".into()],
        }
    }

    fn types(list: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(list).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins
            .iter()
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn our_entry_comes_last_and_only_once() {
        let chained = with_last(LIST, "tulle-cni", &entry()).unwrap().unwrap();
        assert_eq!(types(&chained), ["bridge", "portmap", "tulle-cni"]);
        assert_eq!(with_last(&chained, "tulle-cni", &entry()), Ok(None));
        let elsewhere = Entry {
            socket: "/other".into(),
            ..entry()
        };
        let moved = with_last(&chained, "tulle-cni", &elsewhere).unwrap().unwrap();
        assert_eq!(types(&moved), ["bridge", "portmap", "tulle-cni"]);
        assert!(moved.contains("/other") && !moved.contains("/run/cni.sock"));
    }

    #[test]
    fn an_entry_that_is_not_last_moves_to_the_end() {
        let list = r#"{"plugins": [{"type": "tulle-cni"}, {"type": "bridge"}]}"#;
        let chained = with_last(list, "tulle-cni", &entry()).unwrap().unwrap();
        assert_eq!(types(&chained), ["bridge", "tulle-cni"]);
    }

    #[test]
    fn what_else_the_list_says_stays() {
        let chained = with_last(LIST, "tulle-cni", &entry()).unwrap().unwrap();
        let restored = without(&chained, "tulle-cni").unwrap().unwrap();
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(parse(&restored), parse(LIST));
        assert_eq!(without(&restored, "tulle-cni"), Ok(None));
    }

    #[test]
    fn a_single_plugin_or_no_json_is_said_to_be_so() {
        assert_eq!(
            with_last(r#"{"type": "bridge"}"#, "t", &entry()),
            Err(ListError::Single)
        );
        assert!(matches!(
            with_last("{", "t", &entry()),
            Err(ListError::Unreadable(_))
        ));
    }
}
