//! tulle
fn main() {}
