use super::*;

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web")
}

fn trust(subject: Subject, until: Option<u64>) -> Trust {
    let mut trust = Trust::new("cluster.local", "");
    trust.denied.push(Denied {
        subject,
        reason: "stolen".into(),
        until,
        by: "root".into(),
    });
    trust
}

fn peer<'a>(identity: &'a Identity, serial: Option<&'a Serial>, node: Option<&'a str>) -> Presented<'a> {
    Presented {
        identity,
        serial,
        node,
    }
}

#[test]
fn an_identity_on_the_list_is_denied_whatever_its_certificate() {
    let trust = trust(Subject::Identity(web()), None);
    assert!(trust.denies(&peer(&web(), None, None), 7).is_some());
    let other = Identity::new("cluster.local", "shop", "cart");
    assert_eq!(trust.denies(&peer(&other, None, None), 7), None);
}

#[test]
fn a_serial_denies_one_certificate_only() {
    let stolen: Serial = "0A:ff:00".parse().unwrap();
    let trust = trust(Subject::Serial(stolen.clone()), None);
    assert!(trust.denies(&peer(&web(), Some(&stolen), None), 7).is_some());
    let renewed = Serial::from_be_bytes(&[1, 2]);
    assert_eq!(trust.denies(&peer(&web(), Some(&renewed), None), 7), None);
    assert_eq!(trust.denies(&peer(&web(), None, None), 7), None);
}

#[test]
fn a_node_denies_all_that_runs_on_it() {
    let trust = trust(Subject::Node("n1".into()), None);
    assert!(trust.denies(&peer(&web(), None, Some("n1")), 7).is_some());
    assert!(trust.denies_node("n1", 7).is_some());
    assert_eq!(trust.denies(&peer(&web(), None, Some("n2")), 7), None);
    assert_eq!(trust.denies_node("n2", 7), None);
}

#[test]
fn an_entry_ends_at_its_time() {
    let trust = trust(Subject::Identity(web()), Some(100));
    assert!(trust.denies(&peer(&web(), None, None), 99).is_some());
    assert_eq!(trust.denies(&peer(&web(), None, None), 100), None);
}

#[test]
fn a_serial_has_one_form() {
    let forms = ["0aff00", "AFF00", "0A:FF:00", "00000aff00"];
    for form in forms {
        assert_eq!(form.parse::<Serial>().unwrap().as_str(), "aff00", "{form}");
    }
    assert_eq!(Serial::from_be_bytes(&[0, 0x0a, 0xff, 0]).as_str(), "aff00");
    assert_eq!(Serial::from_be_bytes(&[]).as_str(), "0");
    for text in ["", ":", "xyz", "0x12", &"a".repeat(41)] {
        assert!(text.parse::<Serial>().is_err(), "{text}");
    }
}
