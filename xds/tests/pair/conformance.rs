//! The conformance cases, by their numbers. Each also says that no more is sent than needed.

#[path = "conformance/age.rs"]
mod age;
#[path = "conformance/classical.rs"]
mod classical;
#[path = "conformance/flow.rs"]
mod flow;
#[path = "conformance/names.rs"]
mod names;
#[path = "conformance/order.rs"]
mod order;
#[path = "conformance/rejection.rs"]
mod rejection;
#[path = "conformance/resume.rs"]
mod resume;
#[path = "conformance/wildcard.rs"]
mod wildcard;
