//! Who is refused while something is scarce, and when it is seen.

use super::*;
use tulle_runtime::drain;

const fn used(used: u64, limit: u64) -> Pressure {
    Pressure {
        of: Resource::Descriptors,
        used,
        limit,
    }
}

const LOW: Pressure = used(90, 100);
const HIGH: Pressure = used(91, 100);

const fn only(descriptors: Pressure) -> Pressures {
    Pressures {
        descriptors,
        memory: None,
    }
}

const fn of_memory(limit: u64) -> Pressures {
    Pressures {
        descriptors: LOW,
        memory: Some(Pressure {
            of: Resource::Memory,
            used: 0,
            limit,
        }),
    }
}

fn name(name: &str) -> WorkloadName {
    WorkloadName {
        namespace: "shop".into(),
        name: name.into(),
        service_account: name.into(),
    }
}

fn holding(shedder: &Shedder, weight: &Arc<Weight>, count: usize) -> Vec<Load> {
    (0..count).map(|_| shedder.admit(weight).unwrap()).collect()
}

#[test]
fn above_nine_tenths_the_heaviest_is_refused() {
    let unlimited = used(1 << 40, u64::MAX);
    for (pressure, weights, expected) in [
        (LOW, &[1, 5, 3][..], None),
        (HIGH, &[1, 5, 3], Some(1)),
        (HIGH, &[5, 1, 5], Some(0)),
        (HIGH, &[0, 0], None),
        (HIGH, &[], None),
        (unlimited, &[1, 5], None),
        (used(120, 100), &[0, 1], Some(1)),
    ] {
        assert_eq!(heaviest(pressure, weights), expected, "{pressure:?} {weights:?}");
    }
}

#[test]
fn what_is_closest_to_its_limit_decides() {
    let memory = Pressure {
        of: Resource::Memory,
        ..used(950, 1000)
    };
    assert_eq!(Pressure::compare(&HIGH, &memory), Order::Less);
    assert_eq!(Pressure::compare(&used(0, u64::MAX), &LOW), Order::Less);
    assert_eq!(Pressure::compare(&used(5, 10), &used(50, 100)), Order::Equal);
    let both = Pressures {
        descriptors: HIGH,
        memory: Some(memory),
    };
    assert_eq!(both.worst(), memory);
    assert_eq!(only(HIGH).worst(), HIGH);
}

#[test]
fn f18_handshakes_get_a_small_part_of_the_memory() {
    for (limit, expected) in [
        (1 << 20, HANDSHAKES_MIN),
        (42 << 20, 84),
        (128 << 20, 256),
        (u64::MAX, HANDSHAKES_MAX),
    ] {
        assert_eq!(of_memory(limit).handshakes(), expected, "{limit}");
    }
    assert_eq!(only(LOW).handshakes(), HANDSHAKES_MAX);
}

#[test]
fn f18_slow_readers_share_what_memory_leaves() {
    let memory = |used, limit| Pressures {
        descriptors: LOW,
        memory: Some(Pressure {
            of: Resource::Memory,
            used,
            limit,
        }),
    };
    assert_eq!(only(HIGH).readers(500), 0, "without a limit there is no bound");
    assert_eq!(memory(600, 1000).readers(100), 400);
    assert_eq!(memory(950, 1000).readers(100), 100, "no more than they hold");
    assert_eq!(memory(950, 1000).readers(0), 1, "which is not without a bound");
}

#[test]
fn a_handshake_more_than_there_is_memory_for_is_refused_until_one_ends() {
    let shedder = Shedder::default();
    shedder.judge(of_memory(42 << 20));
    let mut all: Vec<_> = (0..84).map(|_| shedder.handshake().unwrap()).collect();
    assert!(matches!(shedder.handshake(), Err(Error::Overload(_))));
    assert_eq!(shedder.shed.get(), 1);
    all.pop();
    assert!(shedder.handshake().is_ok());
}

#[test]
fn others_are_served_and_what_is_open_stays() {
    let shedder = Shedder::default();
    let (heavy, light) = (shedder.enter(name("heavy")), shedder.enter(name("light")));
    let mut open = holding(&shedder, &heavy, 3);
    open.extend(holding(&shedder, &light, 1));
    shedder.judge(only(HIGH));
    assert!(matches!(shedder.admit(&heavy), Err(Error::Overload(_))));
    assert!(shedder.admit(&light).is_ok());
    assert_eq!((shedder.shedding.get(), shedder.shed.get()), (1, 1));
    assert_eq!(heavy.held.load(Ordering::Relaxed), 3, "a refusal weighs nothing");
    shedder.judge(only(LOW));
    assert!(shedder.admit(&heavy).is_ok());
    assert_eq!(shedder.shedding.get(), 0);
}

#[test]
fn a_workload_that_is_gone_weighs_nothing() {
    let shedder = Shedder::default();
    let (gone, left) = (shedder.enter(name("gone")), shedder.enter(name("left")));
    drop(holding(&shedder, &gone, 9));
    drop(gone);
    let _open = holding(&shedder, &left, 1);
    shedder.judge(only(HIGH));
    assert!(shedder.admit(&left).is_err());
    assert_eq!(shedder.living().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn f17_accepting_resumes_within_a_second_of_relief() {
    let shedder = Shedder::default();
    let weight = shedder.enter(name("heavy"));
    let _open = holding(&shedder, &weight, 1);
    let high = AtomicBool::new(true);
    let pressure = || only(if high.load(Ordering::Relaxed) { HIGH } else { LOW });
    let (_trigger, drain) = drain::new();
    tokio::select! {
        () = shedder.run(pressure, drain) => {}
        () = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(shedder.admit(&weight).is_err());
            high.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(shedder.admit(&weight).is_ok());
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_noticed_before_the_period_ends() {
    let shedder = Shedder::default();
    let weight = shedder.enter(name("heavy"));
    let (_trigger, drain) = drain::new();
    let began = tokio::time::Instant::now();
    tokio::select! {
        () = shedder.run(|| only(HIGH), drain) => {}
        () = async {
            let mut open = Vec::new();
            while let Ok(load) = shedder.admit(&weight) {
                open.push(load);
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert!(began.elapsed() < PERIOD);
}
