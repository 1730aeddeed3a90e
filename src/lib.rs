//! unply
