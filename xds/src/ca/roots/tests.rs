use time::Duration;

use super::*;
use crate::ca::issuer::certificates;
use crate::ca::rotation::{Facts, Waits};

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn advance(roots: &mut Roots, at: OffsetDateTime) {
    let facts = Facts {
        now: at.unix_timestamp(),
        ..Facts::default()
    };
    let next = roots.state().next(&facts, &Waits::default()).unwrap();
    roots.set(next).unwrap();
}

fn count(roots: &Roots) -> usize {
    certificates(&roots.issuing().unwrap().bundle).len()
}

#[test]
fn a_rotation_continues_after_each_restart_and_deletes_the_old_key() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("ca");
    let open = || Roots::open(&folder, "cluster.local", now()).unwrap();
    let mut roots = open();
    let old = roots.issuing().unwrap();
    roots.note_ttl(60).unwrap();
    roots.rotate(now()).unwrap();
    let mut roots = open();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Distribute, 2));
    assert_eq!(roots.issuing().unwrap().signer.serial(), old.signer.serial());
    advance(&mut roots, now() + Duration::minutes(10));
    let mut roots = open();
    let new = roots.issuing().unwrap();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Switch, 2));
    assert_ne!(new.signer.serial(), old.signer.serial());
    assert_eq!(new.intermediates.len(), 1, "the new root, signed by the old one");
    advance(&mut roots, now() + Duration::hours(2));
    assert!(!folder.join(root::KEY_FILE).exists(), "the old key is gone");
    let mut roots = open();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Retire, 1));
    advance(&mut roots, now() + Duration::hours(3));
    let roots = open();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Stable, 1));
    assert!(roots.issuing().unwrap().intermediates.is_empty());
    assert_eq!(roots.issuing().unwrap().bundle, *new.signer.certificate_pem());
}

#[test]
fn a_rollback_ends_with_the_old_root_alone() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("ca");
    let mut roots = Roots::open(&folder, "cluster.local", now()).unwrap();
    let old = roots.issuing().unwrap();
    roots.rotate(now()).unwrap();
    assert!(matches!(roots.rotate(now()), Err(RotationError::Misplaced(_))));
    roots.roll_back(now()).unwrap();
    let after = Roots::open(&folder, "cluster.local", now()).unwrap();
    assert_eq!(after.issuing().unwrap().bundle, old.bundle);
    assert_eq!(after.issuing().unwrap().signer.serial(), old.signer.serial());
}

#[test]
fn an_issuer_from_outside_with_new_roots_begins_a_rotation() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("ca");
    let material = || Material::of_root(Root::generate("cluster.local", now()).unwrap());
    let (first, second) = (material(), material());
    let mut roots = Roots::outside(&folder, "cluster.local", now(), first.clone()).unwrap();
    roots.replace(first.clone(), now()).unwrap();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Stable, 1));
    assert!(matches!(roots.rotate(now()), Err(RotationError::FromOutside)));
    roots.replace(second.clone(), now()).unwrap();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Distribute, 2));
    let signer = roots.issuing().unwrap().signer;
    assert_eq!(signer.serial(), first.signer.as_ref().unwrap().serial());
    assert!(
        roots.replace(material(), now()).is_err(),
        "one rotation at a time"
    );
    // A restart has only the new key: it signs at once, and the old root stays believed.
    let roots = Roots::outside(&folder, "cluster.local", now(), second.clone()).unwrap();
    assert_eq!((roots.state().phase, count(&roots)), (Phase::Switch, 2));
    let signer = roots.issuing().unwrap().signer;
    assert_eq!(signer.serial(), second.signer.as_ref().unwrap().serial());
}
