//! Packets from somebody else, and from a peer that means ill.
