//! What was built: version and revision, as logged at start and exported as `istio_build`.

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The source revision, when the build was told one through `TULLE_REVISION`.
pub const REVISION: &str = match option_env!("TULLE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The tag of this build: `0.1.0` or `0.1.0-abcdef`.
#[must_use]
pub fn tag() -> String {
    if REVISION == "unknown" {
        VERSION.to_owned()
    } else {
        format!("{VERSION}-{REVISION}")
    }
}
