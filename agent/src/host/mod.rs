//! Acting: the only room that touches Docker and the host's files.
