//! The authority stays away until certificates end; its root is replaced; an identity is refused.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::Instant;
use tulle_world::Component;

use super::operator::{command, page, within};
use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::load::Plan;
use crate::mesh::PATIENCE;
use crate::traffic::{Pinned, gets_through};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F04",
        130,
        "the authority stays away until certificates have ended",
        f04,
    ),
    scenario(
        "F27",
        280,
        "the root is rotated, an issuer from outside is replaced and an identity is refused, under load",
        f27,
    ),
];

/// The least that the authority issues for.
const LIFETIME: Duration = Duration::from_secs(60);
/// How much later than it happened an alarm may be seen here.
const LOOK: Duration = Duration::from_millis(500);
/// How long everything is watched after certificates have ended.
const AFTER_THE_END: Duration = Duration::from_secs(10);
/// A returning authority is used again within this time.
const RECOVERY: Duration = Duration::from_secs(2);
/// A refused identity loses its connections within this time.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// A new issuer in the folder signs within this time.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(2);
/// What a rotation may take: both waits, the life of a certificate, and time to tell everybody.
const ROTATION_MAX: Duration = Duration::from_secs(200);

/// When the certificate of a pod ends, as its node's proxy says.
async fn end(mesh: &TestMesh, node: &str, account: &str) -> f64 {
    let identity = format!("identity=\"spiffe://cluster.local/ns/app/sa/{account}\"");
    mesh.metric(node, &["tulle_cert_not_after_seconds{", &identity])
        .await
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn f04(_: Scale) -> Run {
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.environment("SECRET_TTL", &format!("{}s", LIFETIME.as_secs()));
        let mut stage = Stage::of(
            mesh,
            Scale::Short,
            Plan {
                connects_per_second: 0,
                ..Plan::light()
            },
        )
        .await;
        stage.mesh.mesh.kill(&Component::Control).unwrap();
        let [web, db] = [
            end(&stage.mesh, "n1", "web").await,
            end(&stage.mesh, "n2", "db").await,
        ];
        let (first, last) = (web.min(db), web.max(db));
        let (from, to) = (stage.web.namespace().clone(), stage.echo.address());
        let (mut alarm, mut failed_before, mut accepted_after, mut refused_after) =
            (None, 0_u64, 0_u64, 0_u64);
        while now() < last + AFTER_THE_END.as_secs_f64() {
            let begun = now();
            let through = gets_through(&from, to).await;
            // What was under way when the certificate ended is judged neither way.
            if now() < first && !through {
                failed_before += 1;
            }
            if begun > last && through {
                accepted_after += 1;
            }
            refused_after += u64::from(begun > last && !through);
            for node in ["n1", "n2"] {
                if alarm.is_none() && stage.mesh.metric(node, &["tulle_cert_overdue "]).await > 0.0 {
                    alarm = Some(first - now());
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let expired = stage.mesh.metric("n1", &["tulle_denied_total", "T0513"]).await;
        let missing = stage.mesh.metric("n1", &["tulle_denied_total", "T0514"]).await;
        let (established, lost) = stage.load.established();
        stage.mesh.mesh.start_control(&stage.mesh.world).await.unwrap();
        let recovered = within(PATIENCE * 8, async || gets_through(&from, to).await).await;
        let alarm = alarm.unwrap_or(-1.0);
        let least = (LIFETIME / 3).saturating_sub(LOOK).as_secs_f64();
        Figure::new("F04")
            .with("lifetime", format!("{}s", LIFETIME.as_secs()))
            .none("failed_before", failed_before)
            .none("accepted_after", accepted_after)
            .with("refused_after", refused_after)
            .with("established_ended", format!("{lost}/{established}"))
            .expect(
                "named",
                format!("T0513:{:.0},T0514:{:.0}", expired + 0.0, missing + 0.0),
                expired + missing >= refused_after as f64,
                "each refusal T0513 cert_expired or T0514 cert_unavailable",
            )
            .expect(
                "alarm_before_end",
                format!("{alarm:.1}s"),
                alarm >= least,
                "≥ a third of the lifetime",
            )
            .within("recovered", recovered.unwrap_or(Duration::MAX), RECOVERY)
            .noting(stage.load.failures())
    })
}

fn f27(scale: Scale) -> Run {
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.environment("SECRET_TTL", "60s");
        mesh.mesh.set_control_arguments(&[
            "--rotation-distribute",
            "10s",
            "--rotation-margin",
            "10s",
            "--max-certificate-ttl",
            "60s",
        ]);
        let job = mesh.pod("n1", "job").await;
        let stage = Stage::of(mesh, scale, scale.pick(Plan::light(), Plan::l1())).await;
        stage.mesh.captured(&[&job]).await;
        let quiet = stage.quiet().await;
        let begun = Instant::now();
        let phases = rotate(&stage.mesh).await;
        let rotation = begun.elapsed();
        let during = stage.load.report(begun, Instant::now());
        let denied = Pinned::open(job.namespace(), stage.echo.address(), 20).await;
        let said = Instant::now();
        let subject = "spiffe://cluster.local/ns/app/sa/job";
        command(
            &stage.mesh,
            "/ca/deny",
            &json!({"subject": subject, "reason": "stolen", "by": "scenario"}),
        )
        .await;
        let closed = within(PATIENCE, async || denied.lost() == 20).await;
        let refused = !gets_through(job.namespace(), stage.echo.address()).await;
        let revoking = stage.load.report(said, Instant::now());
        let figure = Figure::new("F27")
            .expect(
                "phases",
                phases.join(">"),
                phases == ["distribute", "switch", "retire", "stable"],
                "all, in order",
            )
            .with("rotation", format!("{}s", rotation.as_secs()))
            .losses(&stage.load, &[&quiet[0], &quiet[1], &during, &revoking])
            .latency([&quiet[0], &quiet[1]], &during)
            .within("revoked_closed", closed.unwrap_or(Duration::MAX), CLOSED_WITHIN)
            .expect("revoked_refused", refused, refused, "true");
        drop(stage);
        let swap = swap(scale).await;
        figure
            .within(
                "swap_taken_over",
                swap.taken_over.unwrap_or(Duration::MAX),
                TAKEN_OVER_WITHIN,
            )
            .expect(
                "swap_renewed",
                format!("{}/2", swap.renewed),
                swap.renewed == 2,
                "certificates of the new issuer on both nodes",
            )
            .none("swap_failed", swap.failed)
            .none("swap_lost", swap.lost)
    })
}

/// What replacing an issuer from outside came to.
struct Swap {
    /// Until the control plane signs with the new one.
    taken_over: Option<Duration>,
    /// Nodes whose pod has a certificate that was issued afterwards.
    renewed: u64,
    /// New connections and requests that failed.
    failed: u64,
    /// Lasting connections that ended.
    lost: u64,
}

/// Replaces the intermediate that the control plane signs with by another one of the same root.
async fn swap(scale: Scale) -> Swap {
    let above = Above::new();
    let folder = tempfile::tempdir().unwrap();
    above.issue_into(folder.path(), "first");
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.environment("SECRET_TTL", "60s");
    let ca_dir = folder.path().display().to_string();
    mesh.mesh
        .set_control_arguments(&["--ca-dir", &ca_dir, "--max-certificate-ttl", "60s"]);
    let stage = Stage::of(mesh, scale, scale.pick(Plan::light(), Plan::l1())).await;
    let issuer = async |mesh: &TestMesh| page(mesh, "/ca").await["certificates"][0]["serial"].clone();
    let before = issuer(&stage.mesh).await;
    let begun = Instant::now();
    above.issue_into(folder.path(), "second");
    let taken_over = within(PATIENCE, async || issuer(&stage.mesh).await != before).await;
    let swapped = now();
    // Renewed at half life at the latest.
    tokio::time::sleep(LIFETIME / 2 + AFTER_THE_END).await;
    let mut renewed = 0;
    for (node, account) in [("n1", "web"), ("n2", "db")] {
        let issued = end(&stage.mesh, node, account).await - LIFETIME.as_secs_f64();
        renewed += u64::from(issued >= swapped);
    }
    let report = stage.load.report(begun, Instant::now());
    Swap {
        taken_over,
        renewed,
        failed: (report.connects.failed + report.requests.failed) as u64,
        lost: stage.load.established().1 as u64,
    }
}

/// A root that is nowhere in the mesh, and signs issuers.
struct Above {
    certificate: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Above {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = authority("root", rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// Writes a new issuer as Kubernetes mounts one.
    fn issue_into(&self, folder: &std::path::Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = authority(name, rcgen::BasicConstraints::Constrained(0));
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        for (file, text) in [
            ("tls.key", key.serialize_pem()),
            ("tls.crt", certificate),
            ("ca.crt", self.certificate.clone()),
        ] {
            let draft = folder.join(format!("{file}.new"));
            std::fs::write(&draft, text).unwrap();
            std::fs::rename(draft, folder.join(file)).unwrap();
        }
    }
}

fn authority(name: &str, constraints: rcgen::BasicConstraints) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(constraints);
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    params
}

/// Begins a rotation and follows it to its end; gives the phases in the order in which they were seen.
async fn rotate(mesh: &TestMesh) -> Vec<String> {
    command(mesh, "/ca/rotate", &json!({"force": false})).await;
    let mut phases: Vec<String> = Vec::new();
    within(ROTATION_MAX, async || {
        let phase = page(mesh, "/ca").await["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let is_over = phase == "stable";
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        is_over
    })
    .await;
    phases
}
