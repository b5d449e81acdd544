//! What a page of environment variables says of each of them.

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds when it is not set, or empty.
    pub default: Preset,
    /// What it sets.
    pub meaning: &'static str,
}

/// What holds when a variable is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Nothing.
    Nothing,
    /// The same as if it were set to this.
    Value(&'static str),
    /// What these words say.
    Depends(&'static str),
}

impl Variable {
    /// A variable of this name.
    #[must_use]
    pub const fn new(name: &'static str, default: Preset, meaning: &'static str) -> Self {
        Self {
            name,
            default,
            meaning,
        }
    }
}
