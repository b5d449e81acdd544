//! Who may do what: tokens, authorizers, authorization, limits, faults.

pub mod ask;
pub mod ext_authz;
pub mod fault;
pub mod jwt;
pub mod limit;

use tulle_model::Reason;

use crate::snapshot::FrontState;

/// Whether requests may pass a front at all.
///
/// # Errors
/// `policy_pending` while a policy that the front needs has not arrived; `policy_untranslatable` for one that nobody
/// here can judge: what is not understood lets nobody pass.
pub fn admit(front: &FrontState) -> Result<(), Reason> {
    if !front.missing.is_empty() {
        return Err(Reason::PolicyPending);
    }
    if front.security.iter().any(|policy| !policy.dry_run) {
        return Err(Reason::PolicyUntranslatable);
    }
    Ok(())
}

/// As [`admit`], for a stream that is not read.
///
/// # Errors
/// As [`admit`].
pub fn admit_stream(front: &FrontState) -> Result<(), Reason> {
    admit(front)
}
