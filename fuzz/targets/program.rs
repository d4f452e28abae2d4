//! Reads a program from the input.

pub fn byte(program: &mut &[u8]) -> Option<u8> {
    let (first, rest) = program.split_first()?;
    *program = rest;
    Some(*first)
}

pub fn bytes(program: &mut &[u8], length: usize) -> Vec<u8> {
    let (taken, rest) = program.split_at(length.min(program.len()));
    *program = rest;
    taken.to_vec()
}
