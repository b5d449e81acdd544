//! `tulle config wait`: until every connected proxy has accepted what the configuration folder says now.

use std::time::Duration;

use serde_json::{Value, json};
use tulle_runtime::exit::Exit;

use super::{control_plane, status};
use crate::command::Reading;

/// Pause before the second look at how far the proxies are; each is twice as long as the one before …
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// … up to this one.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What is known so far.
#[derive(Debug, Default)]
struct Known {
    /// The cut that holds everything that was written before the command began.
    cut: Option<u64>,
    /// For whoever waits in vain.
    last: String,
}

pub(super) async fn run(reading: &Reading, at_most: Duration) -> anyhow::Result<Exit> {
    let mut known = Known::default();
    let accepted = tokio::time::timeout(at_most, known.wait(reading)).await;
    println!("{}", known.last);
    match accepted {
        Ok(page) if stands_as_written(&page) => Ok(Exit::Ok),
        Ok(_) => {
            status(reading).await?;
            Ok(Exit::Findings)
        }
        Err(_) => Ok(Exit::Failed),
    }
}

impl Known {
    /// Asks until there is nothing left to wait for; the page that says so.
    async fn wait(&mut self, reading: &Reading) -> Value {
        let mut pause = PAUSE_MIN;
        loop {
            match self.ask(reading).await {
                Ok(Some(page)) => return page,
                Ok(None) => {}
                // It may be starting; the next one begins from the folder.
                Err(error) => (self.cut, self.last) = (None, format!("{error:#}")),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks once; the page, if it says that nothing is left to wait for.
    async fn ask(&mut self, reading: &Reading) -> anyhow::Result<Option<Value>> {
        let control = control_plane(reading)?;
        let cut = match self.cut {
            Some(cut) => cut,
            None => {
                let seen: Seen = control.ask("/config/look", &json!({})).await?;
                *self.cut.insert(seen.cut)
            }
        };
        let page: Value = control.json(&format!("/debug/clusterz?cut={cut}")).await?;
        self.last = page["accepted"]["summary"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if page["head"].as_u64().is_none_or(|head| head < cut) {
            // Another process has begun to count anew.
            self.cut = None;
            return Ok(None);
        }
        Ok(is_over(&page).then_some(page))
    }
}

/// What the control plane answers to a wish for a look.
#[derive(Debug, serde::Deserialize)]
struct Seen {
    cut: u64,
}

/// Whether every connected proxy has said yes, or nothing can be said yes to.
fn is_over(page: &Value) -> bool {
    if page["synced"] != true {
        // Nothing is served until somebody has mended the folder.
        return !stands_as_written(page);
    }
    let count = |name: &str| page["accepted"][name].as_u64();
    count("acked") > Some(0) && (count("pending"), count("rejected")) == (Some(0), Some(0))
}

/// Whether everything that the folder says is in force.
fn stands_as_written(page: &Value) -> bool {
    page["degraded"].is_null() && page["refused"] == 0 && page["stale"] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(accepted: [u64; 3], refused: u64) -> Value {
        let [acked, pending, rejected] = accepted;
        json!({
            "synced": true, "degraded": null, "refused": refused, "stale": 0,
            "accepted": {"acked": acked, "pending": pending, "rejected": rejected}
        })
    }

    #[test]
    fn it_is_over_once_somebody_and_everybody_has_accepted() {
        assert!(is_over(&page([2, 0, 0], 0)));
        for waited in [[0, 0, 0], [1, 1, 0], [1, 0, 1]] {
            assert!(!is_over(&page(waited, 0)), "{waited:?}");
        }
    }

    #[test]
    fn what_is_refused_does_not_stand_and_is_never_served_where_nothing_is() {
        let refused = page([2, 0, 0], 1);
        assert!(is_over(&refused) && !stands_as_written(&refused));
        let mut nothing = page([0, 0, 0], 1);
        nothing["synced"] = false.into();
        assert!(is_over(&nothing), "nobody can accept anything");
        nothing["refused"] = 0.into();
        assert!(!is_over(&nothing), "it is about to be read");
        for (field, value) in [("degraded", json!("empty")), ("stale", json!(1))] {
            let mut page = page([1, 0, 0], 0);
            assert!(stands_as_written(&page));
            page[field] = value;
            assert!(!stands_as_written(&page), "{field}");
        }
    }
}
