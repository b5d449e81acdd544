//! Watching over a captured pod: compare with the plan, put right what is not as planned.

use super::Event;
use super::task::PodTask;
use crate::error::CaptureError;
use crate::metrics::RepairLabels;
use crate::netns::Located;
use crate::probe::Question;
use crate::repair::{self, Check, Held};
use crate::rules::Comparison;
use crate::rules::plan::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use crate::zds::Announcement;

impl PodTask {
    /// Step 7 of joining: what was done is what the kernel has.
    pub(super) async fn confirm(&mut self, located: &Located) -> Result<(), CaptureError> {
        match self.deviations(located).await?.first() {
            None => Ok(()),
            Some(check) => Err(CaptureError::RulesRefused(format!(
                "{check} is not as planned, right after it was put in place"
            ))),
        }
    }

    async fn deviations(&mut self, located: &Located) -> Result<Vec<Check>, CaptureError> {
        let table = self.table(located).await?;
        let observed = self.shared.capture.observe(located, &table).await?;
        if let Comparison::Different { diff } = &observed.rules {
            tracing::warn!(uid = %self.pod.uid, ?diff, "the packet rules are not as planned");
        }
        let held = Held {
            listeners: self.listeners_listen(located).await?,
            announced: self.shared.hub.is_accepted(&self.pod.uid),
        };
        Ok(repair::deviations(&observed, held))
    }

    /// Ours by what they are; the proxy's own by a look at the namespace.
    async fn listeners_listen(&self, located: &Located) -> Result<bool, CaptureError> {
        let Some(announced) = self.shared.hub.announced(&self.pod.uid) else {
            return Ok(false);
        };
        if let Some(listeners) = &announced.listeners {
            return Ok(listeners.are_listening() && listeners.serve_dns() == self.wants_dns());
        }
        if self.shared.hub.newest().is_none() {
            // They are the proxy's to open; nothing can be repaired until one is there.
            return Ok(true);
        }
        let sockets = self.shared.capture.marked_sockets(&located.netns).await?;
        let listens = |port| {
            sockets
                .iter()
                .any(|socket| socket.listening && socket.port == port)
        };
        Ok([OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].into_iter().all(listens))
    }

    /// Says what is not as planned, without a repair.
    pub(super) async fn look(&mut self, question: Question) -> Event {
        let found = match self.located.clone() {
            Some(located) if located.is_still_there() => self.deviations(&located).await,
            _ => Err(CaptureError::NetnsUnknown),
        };
        // Who asked may have gone.
        let _ = question.send(found.map(|found| found.first().copied()));
        Event::Verified
    }

    /// Compares the pod with its plan and puts right what is not as planned.
    pub(super) async fn verify(&mut self) -> Event {
        let Some(mut located) = self.located.clone() else {
            return Event::NetnsLost;
        };
        if !located.is_still_there() {
            tracing::info!(uid = %self.pod.uid, "the pod's network namespace is gone");
            return Event::NetnsLost;
        }
        self.count_forged_marks(&located).await;
        let followed = match self.follow_families(&mut located).await {
            Ok(()) => self.follow_plan(&located).await,
            Err(error) => Err(error),
        };
        let deviations = match followed {
            Ok(()) => self.deviations(&located).await,
            Err(error) => Err(error),
        };
        let found = match deviations {
            Ok(found) if found.is_empty() => {
                self.shared.board.recovered(&self.pod.uid);
                return Event::Verified;
            }
            Ok(found) => self.repair(&located, &found).await,
            Err(error) => Err(error),
        };
        let repaired = match found {
            Ok(()) => self.confirm(&located).await,
            Err(error) => Err(error),
        };
        if let Err(error) = repaired {
            tracing::warn!(uid = %self.pod.uid, code = error.reason().code(), %error, "cannot verify or repair a pod");
            self.shared.board.failed(&self.pod.uid, &error);
        }
        Event::Repaired
    }

    /// IPv6 may be switched on or off in a pod that is captured already. The table is for both families, and our listeners
    /// are there before an address is; route and rule are not. That is no deviation of the pod's: what it has now is
    /// captured. Not done, it is tried again by the next verification.
    async fn follow_families(&mut self, located: &mut Located) -> Result<(), CaptureError> {
        let ipv6 = located.has_ipv6().await;
        let ipv6 = ipv6.map_err(CaptureError::kernel("enter the pod's namespace"))?;
        if ipv6 == located.ipv6 {
            return Ok(());
        }
        tracing::info!(uid = %self.pod.uid, ipv6, "a captured pod has other address families than before");
        located.ipv6 = ipv6;
        if ipv6 {
            self.shared.capture.repair_routes(located).await?;
        }
        self.located = Some(located.clone());
        Ok(())
    }

    /// What the pod's table should be may have changed: its annotations, or whose sockets may carry the mark. That is no
    /// deviation of the pod's.
    async fn follow_plan(&mut self, located: &Located) -> Result<(), CaptureError> {
        if self.wants_dns() && self.serves_dns() == Some(false) {
            // Listeners before rules.
            self.announce_anew(located).await?;
        }
        let table = self.table(located).await?;
        if self.planned.as_ref().is_some_and(|planned| *planned != table) {
            tracing::info!(uid = %self.pod.uid, "the plan of a captured pod changed");
            self.count_forged_marks(located).await;
            self.shared.capture.replan(located, &table).await?;
            (self.planned, self.forged) = (Some(table), 0);
        }
        if !self.wants_dns() && self.serves_dns() == Some(true) {
            // Nothing leads there any more.
            self.announce_anew(located).await?;
        }
        Ok(())
    }

    /// Whether our listeners are asked for names; nothing if the proxy opens its own.
    fn serves_dns(&self) -> Option<bool> {
        let announced = self.shared.hub.announced(&self.pod.uid)?;
        Some(announced.listeners.as_ref()?.serve_dns())
    }

    /// A pod that cannot be looked at is found out about by the verification itself.
    async fn count_forged_marks(&mut self, located: &Located) {
        if self.groups.is_empty() {
            return;
        }
        if let Ok(counted) = self.shared.capture.forged_marks(&located.netns).await {
            self.shared
                .metrics
                .forged_marks
                .inc_by(counted.saturating_sub(self.forged));
            self.forged = counted;
        }
    }

    async fn repair(&mut self, located: &Located, deviations: &[Check]) -> Result<(), CaptureError> {
        for check in deviations {
            tracing::warn!(uid = %self.pod.uid, %check, "a captured pod is not as planned; repairing");
            self.shared
                .metrics
                .repairs
                .get_or_create(&RepairLabels { check: *check })
                .inc();
            self.shared.board.repaired(&self.pod.uid, *check);
            match check {
                Check::rules => {
                    let table = self.table(located).await?;
                    self.shared.capture.repair_rules(located, &table).await?;
                    // What was counted went with the table.
                    (self.planned, self.forged) = (Some(table), 0);
                }
                Check::routes => self.shared.capture.repair_routes(located).await?,
                Check::tcp_loose => self.shared.capture.forbid_mid_stream(&located.netns).await?,
                Check::listeners | Check::proxy => self.announce_anew(located).await?,
                Check::probes | Check::guard => self.shared.host.settle().await?,
            }
        }
        Ok(())
    }

    /// As in joining, for a pod that is captured: nothing is taken back on failure.
    async fn announce_anew(&self, located: &Located) -> Result<(), CaptureError> {
        let Some(newest) = self.shared.hub.newest() else {
            return Ok(());
        };
        let listeners = if newest.takes_sockets {
            Some(self.listeners(located).await?)
        } else {
            None
        };
        let Some(announced) = self.shared.hub.announced(&self.pod.uid) else {
            return Ok(());
        };
        let announcement = Announcement {
            listeners,
            ..announced.as_ref().clone()
        };
        drop(announced);
        self.shared.hub.announce(announcement).await
    }
}
