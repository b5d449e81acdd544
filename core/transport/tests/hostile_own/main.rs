//! The hostile tests again, against our own framing.

#[path = "../hostile/main.rs"]
mod hostile;
