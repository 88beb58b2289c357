//! Exit codes (sysexits.h), so that a service manager can tell a wrong configuration, which a restart does not mend, from
//! a crash, which it may.

/// An internal error.
pub const SOFTWARE: u8 = 70;
/// The socket is served by a live daemon.
pub const TEMPFAIL: u8 = 75;
/// The user may not do this.
pub const NOPERM: u8 = 77;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;
