//! The hostile tests again, against our own framing over records of ours.

#[path = "../hostile/main.rs"]
mod hostile;
