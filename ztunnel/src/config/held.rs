//! What a supervisor or service manager does for this process: it hears that we are ready, and holds what the next
//! process needs to serve at once, where no disk ever sees it.

use serde::Serialize;
use tulle_runtime::config::{Collector, Env};

/// Keys and certificates.
pub const HELD_KEYS: &str = "tulle-keys";
/// What the control plane said last.
pub const HELD_CONFIGURATION: &str = "tulle-configuration";
/// Everything that is held.
pub const HELD_NAMES: [&str; 2] = [HELD_KEYS, HELD_CONFIGURATION];

/// First descriptor that systemd passes.
const LISTEN_FDS_START: i32 = 3;

/// Who looks after this process.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Supervision {
    /// Where readiness is told and descriptors are stored.
    pub notify: Option<String>,
    /// An older generation in the same namespace may still hold our ports.
    pub supervised: bool,
    /// Descriptor of the keys that an earlier process left.
    pub keys: Option<i32>,
    /// Descriptor of the configuration that an earlier process left.
    pub configuration: Option<i32>,
}

/// The variable that tells the number of a held descriptor.
#[must_use]
pub fn variable_of(name: &str) -> &'static str {
    if name == HELD_KEYS {
        "TULLE_HELD_KEYS"
    } else {
        "TULLE_HELD_CONFIGURATION"
    }
}

pub(super) fn read(read: &mut Collector<'_>, env: &dyn Env) -> Supervision {
    let notify = Some(read.string("NOTIFY_SOCKET", "")).filter(|path| !path.is_empty());
    let held = |name| env.var(variable_of(name)).and_then(|number| number.parse().ok());
    Supervision {
        supervised: read.bool("TULLE_SUPERVISED", false),
        keys: held(HELD_KEYS).or_else(|| of_systemd(env, HELD_KEYS)),
        configuration: held(HELD_CONFIGURATION).or_else(|| of_systemd(env, HELD_CONFIGURATION)),
        notify,
    }
}

/// sd_listen_fds(3): the last descriptor of this name, should several be stored.
fn of_systemd(env: &dyn Env, name: &str) -> Option<i32> {
    let names = env.var("LISTEN_FDNAMES")?;
    let at = names
        .split(':')
        .collect::<Vec<_>>()
        .iter()
        .rposition(|found| *found == name)?;
    Some(LISTEN_FDS_START + i32::try_from(at).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    #[test]
    fn a_service_manager_tells_descriptors_by_name() {
        let env = MapEnv::from([(
            "LISTEN_FDNAMES",
            "tulle-keys:connection:tulle-configuration:tulle-keys",
        )]);
        assert_eq!(of_systemd(&env, HELD_KEYS), Some(6));
        assert_eq!(of_systemd(&env, HELD_CONFIGURATION), Some(5));
        assert_eq!(of_systemd(&MapEnv::default(), HELD_KEYS), None);
    }
}
