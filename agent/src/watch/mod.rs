//! Looking by itself, now and then, at what nobody asks about. Looks and tells the metrics; never acts on the host.

mod drift;

pub use drift::run;
