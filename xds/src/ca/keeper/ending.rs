//! Which certificate of the authority ends soon, and what is to be done about it. Pure.

use tulle_model::Reason;

use super::CertificateStatus;

/// Less than one part in so many of its life is little …
const LIFE_PARTS: i64 = 5;
/// … but of a long life nobody needs to hear earlier than this many seconds before its end: 60 days.
const TOLD_BEFORE_MAX: i64 = 60 * DAY;
const DAY: i64 = 24 * 3600;

/// What is to be said of the certificate that ends first, if it ends soon.
pub(super) fn expires_soon(certificates: &[CertificateStatus], now: i64, is_outside: bool) -> Option<String> {
    let is_soon = |one: &&CertificateStatus| {
        let life = one.not_after.saturating_sub(one.not_before);
        one.not_after.saturating_sub(now) < (life / LIFE_PARTS).min(TOLD_BEFORE_MAX)
    };
    let soon = certificates.iter().filter(is_soon);
    let first = soon.min_by_key(|one| one.not_after)?;
    let left = match first.not_after.saturating_sub(now) {
        ..=0 => "has ended".to_owned(),
        left @ 1..DAY => format!("ends in {} h", left / 3600),
        left => format!("ends in {} days", left / DAY),
    };
    let fix = match is_outside {
        true => "put a new issuer into the folder that it comes from",
        false => "`tulle ca rotate` replaces it",
    };
    let (role, serial) = (first.role, &first.serial);
    Some(format!(
        "{}: the {role} {serial} {left}; {fix}",
        Reason::IssuerExpiresSoon
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(days: i64, left: i64, is_outside: bool) -> Option<String> {
        let one = CertificateStatus {
            role: "intermediate",
            serial: "0a".to_owned(),
            not_before: 0,
            not_after: days * DAY,
        };
        expires_soon(&[one], days * DAY - left, is_outside)
    }

    #[test]
    fn the_last_fifth_of_a_life_is_soon_and_of_a_long_one_the_last_sixty_days() {
        for (days, soon) in [(1, DAY / 5), (100, 20 * DAY), (300, 60 * DAY), (3_650, 60 * DAY)] {
            assert_eq!(said(days, soon, true), None, "{days} days");
            assert!(said(days, soon - 1, true).is_some(), "{days} days");
        }
    }

    #[test]
    fn what_is_said_names_code_certificate_time_and_what_to_do() {
        let outside = said(365, 41 * DAY, true).expect("soon");
        assert_eq!(
            outside,
            "T0308 issuer_expires_soon: the intermediate 0a ends in 41 days; put a new issuer into the folder that it comes from"
        );
        assert!(
            said(365, 7_200, false)
                .expect("soon")
                .contains("ends in 2 h; `tulle ca rotate`")
        );
        assert!(said(365, -1, true).expect("past").contains("has ended"));
    }
}
