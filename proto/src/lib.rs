//! Names, shapes and signatures that the agent and `deployctl` share.
