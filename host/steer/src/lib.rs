//! Connections that the kernel steers and this process never sees: NAT pass-through and direct server return (DSR), as
//! rules of nftables.
//!
//! [`Steer`] says which packets, [`Backend`] where they may go. [`Plan`] is both, and [`transaction`] makes of a plan, and of
//! the one before it, what `nft` is to do: a pure function. [`Roster`] follows the endpoints of a cluster: who takes new
//! flows, who only keeps old ones, who is down. The rest speaks to the kernel: [`nft`] applies, reads counters and removes,
//! [`Claim`] keeps two processes from one name, [`conntrack`] forgets the flows of the dead, [`neighbours`] knows MACs. All
//! of it blocks; who calls it when is `tidegate`'s.

mod claim;
pub mod conntrack;
pub mod neighbours;
mod netlink;
pub mod nft;
mod roster;
mod rules;
mod spec;

pub use claim::{Claim, ClaimError};
pub use nft::{NftError, TableName};
pub use roster::{Member, Roster};
pub use rules::{Plan, counters, removal, transaction, usual_mark};
pub use spec::{Affinity, Backend, Dsr, Mac, Mode, Nat, Protocol, Role, Source, Steer};
