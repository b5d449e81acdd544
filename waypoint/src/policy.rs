//! Who may do what: tokens, authorizers, authorization, limits, faults.
