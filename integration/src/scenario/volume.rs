//! The control plane at its full size: memory, cold start, propagation, returns and certificates.
//!
//! A real process on loopback, over a real folder; the streams are ours and share the machine with it.

mod back;
mod fleet;
mod plane;
mod resync;
mod signing;
mod writer;

use std::time::Duration;

use back::Returning;
use fleet::{Fleet, Pushed};
use plane::{Plane, Size, node};
use resync::Resync;
use tulle_proto::ADDRESS_TYPE;
use tulle_runtime::usage::Memory;

use super::{Figure, Run, Scale, Scenario, scenario};
use crate::ads::{Stream, Taking, first};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "LOAD",
        720,
        "100,000 workloads and 2,000 streams: memory, cold start, returns, certificates",
        load,
    ),
    scenario(
        "PUSH",
        240,
        "10,000 workloads and 2,000 streams: changes at 10, 100 and 1,000 a second",
        push,
    ),
    scenario(
        "WIDE",
        150,
        "250,000 workloads and a few streams: start and memory",
        wide,
    ),
];

/// Memory that 100,000 workloads and 2,000 streams may take while one thing changes after the other: 400 MB.
const MEMORY_MIB_MAX: f64 = 381.0;
/// Time until a control plane of 100,000 workloads is ready.
const COLD_MAX: Duration = Duration::from_secs(10);
/// The same for a folder of 10,000 objects.
const COLD_FOLDER_MAX: Duration = Duration::from_secs(2);
/// Bytes that a node may take to learn that nothing changed.
const RETURN_BYTES_MAX: u64 = 10_000;
/// Percent of a whole table that a client takes to come back by digests after one of a hundred pods has changed …
const RESYNC_BY_DIGESTS_MAX: f64 = 25.0;
/// … and one that tells versions.
const RESYNC_BY_VERSIONS_MAX: f64 = 1.2;
/// What one client that does not read may cost the others.
const SLOW_READER_MAX: f64 = 1.1;
/// Compressed bytes per workload of a whole table.
const PACKED_MAX: f64 = 45.0;
/// Time in which 60,000 certificates are signed after a storm of nodes, on four processors.
const STORM_MAX: Duration = Duration::from_secs(15);
/// Certificates per second and processor.
const SIGNED_MIN: f64 = 5_000.0;

fn load(scale: Scale) -> Run {
    Box::pin(async move {
        let (pods, streams) = scale.pick((10_000, 200), (100_000, 2_000));
        let mut plane = Plane::prepare(Size { pods, nodes: streams });
        let cold = plane.start().await;
        let loaded = plane.memory_mib(Memory::Resident);
        let fleet = Fleet::connect(&plane, streams).await;
        let connected = plane.memory_mib(Memory::Resident);
        let edit = fleet
            .changes(&plane, 1, Duration::from_secs(scale.pick(5, 600)))
            .await;
        let (rss, peak) = (plane.memory_mib(Memory::Resident), plane.memory_mib(Memory::Peak));
        let differing = fleet.differing(&plane).await as u64;
        let (broken, how) = fleet.broken();
        let packed = fleet.table_bytes as f64 / (streams * pods) as f64;
        let consistent = fleet.consistent;
        drop(fleet);
        let returning = Returning::start(&plane).await;
        let cut = returning.after_a_cut().await;
        let (restarted, restart) = returning.after_a_restart(&mut plane).await;
        let share = 100.0 * cut as f64 / returning.full as f64;
        let full = returning.full;
        drop(returning);
        let signed = signing::measure(&plane, scale.pick(20, 240)).await;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Figure::new("LOAD")
            .with("workloads", pods)
            .with("streams", streams)
            .within("cold", cold, COLD_MAX)
            .with_time("consistent", consistent)
            .with("loaded_mib", format!("{loaded:.0}"))
            .with("connected_mib", format!("{connected:.0}"))
            .with("rss_mib", format!("{rss:.0}"))
            .expect("peak_mib", format!("{peak:.0}"), peak <= MEMORY_MIB_MAX, "≤ 381")
            .expect(
                "packed_bytes_per_workload",
                format!("{packed:.1}"),
                packed <= PACKED_MAX,
                "≤ 45",
            )
            .with_time("edit_p50", edit.p50)
            .with_time("edit_p99", edit.p99)
            .none("broken", broken as u64)
            .none("differing", differing)
            .with("full_bytes", full)
            .expect("return_bytes", cut, cut <= RETURN_BYTES_MAX, "≤ 10,000")
            .expect("return_share", format!("{share:.2}%"), share <= 1.0, "≤ 1 %")
            .expect(
                "after_restart_bytes",
                restarted,
                restarted <= RETURN_BYTES_MAX,
                "≤ 10,000",
            )
            .with_time("restart", restart)
            .with("certificates", signed.certificates)
            .within("storm", signed.took, STORM_MAX)
            .none("refused", signed.refused)
            .with("certificates_per_s", format!("{:.0}", signed.per_second))
            .expect(
                "per_processor",
                format!("{:.0}", signed.per_second / signed.cpu.clamp(0.01, cores as f64)),
                signed.per_second / signed.cpu.clamp(0.01, cores as f64) >= SIGNED_MIN,
                "≥ 5,000",
            )
            .within("single_p99", signed.single_p99, Duration::from_millis(5))
            .noting(how.into_iter().collect())
    })
}

fn push(scale: Scale) -> Run {
    Box::pin(async move {
        let (pods, streams) = scale.pick((1_000, 100), (10_000, 2_000));
        let mut plane = Plane::prepare(Size { pods, nodes: streams });
        let cold = plane.start().await;
        let seconds = |short, full| Duration::from_secs(scale.pick(short, full));
        let lone = Fleet::connect(&plane, 1).await;
        let edit = lone.changes(&plane, 5, seconds(3, 20)).await;
        let resync = resync::measure(&plane, &lone).await;
        drop(lone);
        let fleet = Fleet::connect(&plane, streams).await;
        let single = fleet.changes(&plane, 1, seconds(5, 20)).await;
        let ten = fleet.changes(&plane, 10, seconds(3, 20)).await;
        let slow = {
            let config = plane.config_of(&node(0));
            let _stalled = Stream::open_as(&config, &first(&node(0), ADDRESS_TYPE), Taking::Little)
                .await
                .unwrap();
            fleet.changes(&plane, 10, seconds(3, 18)).await
        };
        let times = slow.p99.as_secs_f64() / ten.p99.as_secs_f64();
        let hundred = fleet.changes(&plane, 100, seconds(3, 20)).await;
        let thousand = fleet.changes(&plane, 1_000, seconds(3, 60)).await;
        let peak = plane.memory_mib(Memory::Peak);
        let differing = fleet.differing(&plane).await as u64;
        let (broken, how) = fleet.broken();
        let limit = Duration::from_millis(100);
        let figure = Figure::new("PUSH")
            .with("workloads", pods)
            .with("streams", streams)
            .within("cold", cold, COLD_FOLDER_MAX)
            .with_time("edit_p50", edit.p50)
            .within("edit_p99", edit.p99, limit);
        let mut figure = came_back(figure, &resync, scale)
            .with_time("consistent", fleet.consistent)
            .with_time("1/s_p50", single.p50)
            .within("1/s_p99", single.p99, limit)
            .with_time("10/s_p50", ten.p50)
            .within("10/s_p99", ten.p99, limit)
            .expect(
                "beside_one_that_stalls",
                format!("{times:.2}x"),
                times <= SLOW_READER_MAX,
                "≤ 1.1x",
            )
            .with_time("100/s_p50", hundred.p50)
            .with_time("100/s_p99", hundred.p99)
            .with_time("1000/s_p50", thousand.p50)
            .within("1000/s_p99", thousand.p99, Duration::from_secs(1))
            .with("written_per_s", format!("{:.0}", thousand.rate))
            .with_time("settled", thousand.settled)
            .with("peak_mib", format!("{peak:.0}"));
        for (name, pushed) in [
            ("1/s", &single),
            ("10/s", &ten),
            ("10/s_beside_one_that_stalls", &slow),
            ("100/s", &hundred),
            ("1000/s", &thousand),
        ] {
            figure = figure
                .none(&format!("{name}_missed"), pushed.missed)
                .with_time(&format!("{name}_writer_late"), pushed.written.late(1000))
                .noting(vec![describe(name, pushed)]);
        }
        figure
            .none("broken", broken as u64)
            .none("differing", differing)
            .noting(how.into_iter().collect())
    })
}

/// What a client takes that comes back. Short runs change as many pods of a tenth of them, and are not judged.
fn came_back(figure: Figure, resync: &Resync, scale: Scale) -> Figure {
    let is_short = scale == Scale::Short;
    figure
        .expect(
            "resync_by_digests",
            format!("{:.1}%", resync.by_digests),
            is_short || resync.by_digests <= RESYNC_BY_DIGESTS_MAX,
            "≤ 25 %",
        )
        .expect(
            "resync_by_versions",
            format!("{:.2}%", resync.by_versions),
            is_short || resync.by_versions <= RESYNC_BY_VERSIONS_MAX,
            "≤ 1.2 %",
        )
}

fn wide(scale: Scale) -> Run {
    Box::pin(async move {
        let (pods, streams) = scale.pick((25_000, 4), (250_000, 4));
        let mut plane = Plane::prepare(Size { pods, nodes: 2_000 });
        let cold = plane.start().await;
        let fleet = Fleet::connect(&plane, streams).await;
        let edit = fleet.changes(&plane, 1, Duration::from_secs(10)).await;
        let (rss, peak) = (plane.memory_mib(Memory::Resident), plane.memory_mib(Memory::Peak));
        let differing = fleet.differing(&plane).await as u64;
        let (broken, how) = fleet.broken();
        Figure::new("WIDE")
            .with("workloads", pods)
            .with("streams", streams)
            .with_time("cold", cold)
            .with_time("consistent", fleet.consistent)
            .with("rss_mib", format!("{rss:.0}"))
            .with("peak_mib", format!("{peak:.0}"))
            .with("kib_per_workload", format!("{:.2}", rss * 1024.0 / pods as f64))
            .with_time("edit_p50", edit.p50)
            .none("missed", edit.missed)
            .none("broken", broken as u64)
            .none("differing", differing)
            .noting(how.into_iter().collect())
    })
}

fn describe(name: &str, pushed: &Pushed) -> String {
    format!(
        "{name}: max {:?}, writer late {:?} at most and {:?} in 99 of 100, {} responses of {} bytes, control plane {:.2} \
         processors",
        pushed.max,
        pushed.written.late(1000),
        pushed.written.late(990),
        pushed.responses,
        pushed.bytes,
        pushed.cpu
    )
}
