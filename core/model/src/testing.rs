//! Builders that keep what a test assumes to a line or two.
