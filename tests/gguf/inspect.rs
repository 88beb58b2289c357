//! `omnictl inspect` against files and a server.
