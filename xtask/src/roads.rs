//! What a turn of a streaming loop costs: how many instructions lie on the shortest way around it.

use std::collections::{BTreeMap, BTreeSet};

/// A way around a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Road {
    /// The address where the loop begins.
    pub start: u64,
    pub instructions: u32,
    /// Of 128 bits, in global memory.
    pub loads: u32,
    pub stores: u32,
    /// Of the special-function unit.
    pub special: u32,
}

impl Road {
    /// Issue slots for 16 bytes of the stream: of what it reads, or writes where it reads nothing.
    pub fn per_pack(&self) -> f64 {
        f64::from(self.instructions) / f64::from(if self.loads > 0 { self.loads } else { self.stores })
    }
}

/// A kernel's instructions: address and text.
type Code<'a> = Vec<(u64, &'a str)>;

/// The innermost streaming loops of every kernel in a listing of `cuobjdump -sass`. Of the ways around a loop the one counts that makes the most accesses
/// of 128 bits, and among these the shortest: of a row without surprises. A warp is taken to be together.
pub fn roads(listing: &str) -> BTreeMap<String, Vec<Road>> {
    let mut kernels: BTreeMap<String, Code> = BTreeMap::new();
    let mut kernel = String::new();
    for line in listing.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            kernel = name.trim().to_owned();
        } else if let Some(instruction) = parse(line) {
            kernels.entry(kernel.clone()).or_default().push(instruction);
        }
    }
    kernels.into_iter().map(|(kernel, code)| (kernel, innermost(&code))).collect()
}

/// The address and the text of an instruction's line.
pub fn parse(line: &str) -> Option<(u64, &str)> {
    let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let (text, _) = rest.split_once(';')?;
    Some((u64::from_str_radix(address, 16).ok()?, text.trim()))
}

fn is_stream(text: &str, kind: &str) -> bool {
    let op = operation(text).unwrap_or_default();
    op.starts_with(kind) && wide(op)
}

/// Where instruction `at` may be followed by which.
fn successors(code: &Code, places: &BTreeMap<u64, usize>, at: usize) -> Vec<usize> {
    let text = code[at].1;
    let op = operation(text).unwrap_or_default();
    let next = (at + 1 < code.len()).then_some(at + 1);
    let is_conditional = text.starts_with('@');
    if ["EXIT", "RET", "BRX", "JMX"].iter().any(|end| op.starts_with(end)) {
        return next.filter(|_| is_conditional).into_iter().collect();
    }
    // The way of a warp whose lanes went apart is not looked at.
    if !op.starts_with("BRA") || op.starts_with("BRA.DIV") || op.starts_with("BRA.CONV") {
        return next.into_iter().collect();
    }
    let operands = text.split_once(op).map_or("", |(_, operands)| operands);
    let target = operands.rsplit("0x").next().and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let may_pass = is_conditional || operands.contains(',');
    let target = target.and_then(|target| places.get(&target).copied());
    target.into_iter().chain(next.filter(|_| may_pass)).collect()
}

/// Edges that close loops, and the instructions that can be reached, each behind those that lead to it.
fn loops(edges: &[Vec<usize>]) -> (BTreeSet<(usize, usize)>, Vec<usize>) {
    let (mut back, mut order) = (BTreeSet::new(), Vec::new());
    let (mut is_open, mut is_seen) = (vec![false; edges.len()], vec![false; edges.len()]);
    let mut path = vec![(0, 0)];
    (is_open[0], is_seen[0]) = (true, true);
    while let Some((from, turn)) = path.last_mut() {
        let Some(&to) = edges[*from].get(*turn) else {
            is_open[*from] = false;
            order.push(*from);
            path.pop();
            continue;
        };
        *turn += 1;
        if is_open[to] {
            back.insert((*from, to));
        } else if !is_seen[to] {
            (is_open[to], is_seen[to]) = (true, true);
            path.push((to, 0));
        }
    }
    order.reverse();
    (back, order)
}

fn innermost(code: &Code) -> Vec<Road> {
    let places = code.iter().enumerate().map(|(at, (address, _))| (*address, at)).collect();
    let edges: Vec<Vec<usize>> = (0..code.len()).map(|at| successors(code, &places, at)).collect();
    let streams: Vec<u32> =
        code.iter().map(|(_, text)| u32::from(is_stream(text, "LDG") || is_stream(text, "STG"))).collect();
    let (back, order) = loops(&edges);
    let starts: BTreeSet<usize> = back.iter().map(|&(_, to)| to).collect();
    let ways: Vec<Vec<usize>> = starts
        .into_iter()
        .filter_map(|start| best_way(start, &edges, &streams, &back, &order))
        .filter(|way| way.iter().any(|&at| streams[at] > 0))
        .collect();
    let holds_another = |way: &Vec<usize>| ways.iter().any(|other| other[0] != way[0] && way.contains(&other[0]));
    ways.iter().filter(|way| !holds_another(way)).map(|way| road(code, way)).collect()
}

/// The way around the loop that begins at `start`, from there on.
fn best_way(
    start: usize,
    edges: &[Vec<usize>],
    streams: &[u32],
    back: &BTreeSet<(usize, usize)>,
    order: &[usize],
) -> Option<Vec<usize>> {
    // Of the best way to each instruction: accesses, instructions before it, and the last of these.
    let mut best: BTreeMap<usize, (u32, u32, usize)> = BTreeMap::from([(start, (streams[start], 0, start))]);
    for &from in order {
        let Some(&(accesses, length, _)) = best.get(&from) else { continue };
        for &to in edges[from].iter().filter(|&&to| !back.contains(&(from, to))) {
            let way = (accesses + streams[to], length + 1, from);
            let is_better = |old: &(u32, u32, usize)| way.0 > old.0 || (way.0 == old.0 && way.1 < old.1);
            if best.get(&to).is_none_or(is_better) {
                best.insert(to, way);
            }
        }
    }
    let ends = back.iter().filter(|&&(_, to)| to == start).filter_map(|&(from, _)| Some((from, best.get(&from)?)));
    let (mut at, _) = ends.min_by_key(|(_, (accesses, length, _))| (u32::MAX - accesses, *length))?;
    let mut way = vec![at];
    while at != start {
        at = best[&at].2;
        way.push(at);
    }
    way.reverse();
    Some(way)
}

fn road(code: &Code, way: &[usize]) -> Road {
    let count = |belongs: &dyn Fn(&str) -> bool| way.iter().filter(|&&at| belongs(code[at].1)).count() as u32;
    Road {
        start: code[way[0]].0,
        instructions: way.len() as u32,
        loads: count(&|text| is_stream(text, "LDG")),
        stores: count(&|text| is_stream(text, "STG")),
        special: count(&|text| operation(text).is_some_and(|op| op.starts_with("MUFU"))),
    }
}

/// The operation of a text such as `@!P0 LDG.E.128 R4, desc[UR4][R2.64]`.
pub fn operation(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| !word.starts_with('@') && !word.starts_with('{'))
}

/// It moves 16 bytes or more.
pub fn wide(op: &str) -> bool {
    op.contains(".128") || op.contains(".256")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_row_without_surprises_is_counted() {
        let listing = "\t\tFunction : stream\n\
            /*0000*/ MOV R1, R2 ; /* 0x0 */\n\
            /*0010*/ IADD3 R1, R1, 0x1, RZ ; /* 0x0 */\n\
            /*0020*/ @P0 BRA 0x90 ; /* 0x0 */\n\
            /*0030*/ @!P1 LDG.E.128 R4, desc[UR4][R2.64] ; /* 0x0 */\n\
            /*0040*/ BRA.DIV UR7, 0xb0 ; /* 0x0 */\n\
            /*0050*/ @!P0 BRA P1, 0x70 ; /* 0x0 */\n\
            /*0060*/ MUFU.EX2 R3, R3 ; /* 0x0 */\n\
            /*0070*/ MUFU.EX2 R5, R5 ; /* 0x0 */\n\
            /*0080*/ @!P2 BRA 0x10 ; /* 0x0 */\n\
            /*0090*/ EXIT ; /* 0x0 */\n\
            /*00a0*/ BRA 0xa0; /* 0x0 */\n\
            /*00b0*/ BRA 0x10 ; /* 0x0 */\n";
        let road = Road { start: 0x10, instructions: 7, loads: 1, stores: 0, special: 1 };
        assert_eq!(roads(listing)["stream"], [road]);
        assert_eq!(road.per_pack(), 7.0);
    }

    #[test]
    fn of_loops_in_loops_the_innermost_count() {
        let listing = "\t\tFunction : nested\n\
            /*0000*/ MOV R1, R2 ; /* 0x0 */\n\
            /*0010*/ STG.E.128 desc[UR4][R2.64], R4 ; /* 0x0 */\n\
            /*0020*/ @P0 BRA 0x10 ; /* 0x0 */\n\
            /*0030*/ @P1 BRA 0x0 ; /* 0x0 */\n\
            /*0040*/ EXIT ; /* 0x0 */\n";
        assert_eq!(roads(listing)["nested"], [Road { start: 0x10, instructions: 2, loads: 0, stores: 1, special: 0 }]);
    }
}
