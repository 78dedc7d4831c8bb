//! Fuzz targets for everything that reads bytes from outside: one program a parser in `targets/`, seeds in `seeds/`.
//! Each asks for more than not to panic: what a parser took must survive a second reading.
//!
//! They link libFuzzer, which its crate builds with a C++ compiler. A plain build does not instrument the code under
//! test, and libFuzzer then keeps no corpus: it would mutate a single byte for ever. So the targets bring a mutator
//! that starts from their seeds. With coverage (`RUSTFLAGS="-Cpasses=sancov-module
//! -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
//! -Cllvm-args=-sanitizer-coverage-pc-table"`, and a target directory of its own) libFuzzer finds its way from there.

/// libFuzzer's own mutation of `data[..size]`, which gives the new size.
pub type Mutation = fn(&mut [u8], usize, usize) -> usize;

/// Mutates `data[..size]` into at most `max_size` bytes; where there is nothing yet to mutate, a seed.
pub fn mutate(
    seeds: &[&[u8]],
    data: &mut [u8],
    size: usize,
    max_size: usize,
    random: u32,
    mutation: Mutation,
) -> usize {
    let size = if size > 1 { size } else { start(seeds, data, max_size, random) };
    mutation(data, size, max_size)
}

fn start(seeds: &[&[u8]], data: &mut [u8], max_size: usize, random: u32) -> usize {
    let seed = seeds.get(random as usize % seeds.len().max(1)).copied().unwrap_or_default();
    let size = seed.len().min(max_size).min(data.len());
    data[..size].copy_from_slice(&seed[..size]);
    size
}

/// Makes a target begin with the named files of `seeds/<target>/`.
#[macro_export]
macro_rules! seeds {
    ($target:literal: $($name:literal),+) => {
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, random: u32| {
            const SEEDS: &[&[u8]] =
                &[$(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/", $target, "/", $name))),+];
            $crate::mutate(SEEDS, data, size, max_size, random, libfuzzer_sys::fuzzer_mutate)
        });
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_a_seed_and_something_stays() {
        let seeds: &[&[u8]] = &[b"first", b"second seed"];
        let same: Mutation = |_, size, _| size;
        for (size, max_size, random, want) in
            [(0, 32, 0, &b"first"[..]), (1, 32, 3, b"second seed"), (1, 4, 1, b"seco"), (3, 32, 0, b"xxx")]
        {
            let mut data = [b'x'; 32];
            let size = mutate(seeds, &mut data, size, max_size, random, same);
            assert_eq!(&data[..size], want);
        }
        assert_eq!(mutate(&[], &mut [0; 4], 1, 4, 7, same), 0);
    }
}
