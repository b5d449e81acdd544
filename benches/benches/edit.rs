//! One edit among many objects of a folder: from the write to the cut that has it. The folder is first left alone for
//! 20 ms, which is in the figure. `cargo bench -p tulle-benches --bench edit`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tokio::sync::watch;
use tulle_benches::mesh::manifests;
use tulle_k8s::translate::MeshConfig;
use tulle_runtime::tasks::Scope;
use tulle_xds::metrics::EngineMetrics;
use tulle_xds::snapshot::{ResourceType, Snapshot};
use tulle_xds::source::folder::looks::Looks;
use tulle_xds::source::{FolderConfig, start};
use tulle_xds::status::Clients;

/// Objects of one file.
const OBJECTS_PER_FILE: usize = 1_000;

fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!("{name}.yaml~"));
    std::fs::write(&draft, text).expect("it can be written");
    std::fs::rename(&draft, folder.join(format!("{name}.yaml"))).expect("it can be renamed");
}

/// A pod in a file of its own, at the address of an edit.
fn edited(number: u64) -> (String, String) {
    let ip = format!("11.0.{}.{}", number / 250 % 250, number % 250);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: edited, namespace: ns0, uid: edited, labels: {{app: s0}}}}\nspec: {{nodeName: n0, serviceAccountName: s0}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    );
    (format!("/{ip}"), text)
}

async fn until_known(snapshots: &mut watch::Receiver<Arc<Snapshot>>, alias: &str) {
    let known = |snapshot: &Arc<Snapshot>| !snapshot.resolve(ResourceType::Address, alias).is_empty();
    snapshots.wait_for(known).await.expect("the engine runs");
}

fn edit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("edit to cut");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for pods in [1_000, 10_000, 50_000] {
        let runtime = tulle_benches::runtime();
        let (config, state) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let objects: Vec<String> = manifests(pods)
            .split_inclusive("---\n")
            .map(ToOwned::to_owned)
            .collect();
        for (file, some) in objects.chunks(OBJECTS_PER_FILE).enumerate() {
            write(config.path(), &format!("part-{file}"), &some.concat());
        }
        let (mut number, scope) = (0, Scope::new());
        write(config.path(), "edited", &edited(number).1);
        let folder = FolderConfig {
            config_dir: config.path().to_owned(),
            state_dir: Some(state.path().to_owned()),
            follow: false,
            looks: Looks::default(),
            namespaces: None,
            reading: None,
        };
        let mut snapshots = runtime.block_on(async {
            let trust = watch::channel(None).1;
            let (clients, metrics) = (Clients::default(), EngineMetrics::default());
            let mut snapshots =
                start(folder, MeshConfig::default(), trust, clients, metrics, &scope).snapshots;
            until_known(&mut snapshots, &edited(0).0).await;
            snapshots
        });
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut all = Duration::ZERO;
                for _ in 0..rounds {
                    number += 1;
                    let (alias, text) = edited(number);
                    let begin = Instant::now();
                    write(config.path(), "edited", &text);
                    runtime.block_on(until_known(&mut snapshots, &alias));
                    all += begin.elapsed();
                }
                all
            });
        });
        scope.cancel();
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
    group.finish();
}

criterion_group!(benches, edit);
criterion_main!(benches);
