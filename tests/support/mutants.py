"""Mutation testing of what decides numbers: mutmut on a sample of the mutants, and the share killed in each room.

Usage: mutants.py [MUTANTS_A_ROOM|all], in the repository root. Every file of a room gives the same share of its
mutants. Which ones follows from their names alone, so that a change of one function leaves the others' in the sample.
Mutants that no test killed are tried again by the next call; `mutmut show NAME` prints one.
"""

import hashlib
import sys
from collections import defaultdict

import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.mutation import file_mutation
from mutmut.stats import status_by_exit_code

PER_ROOM = 40
KILLED = {"killed", "timeout", "segfault"}
# mutmut leaves out every decorated function, and so all metrics and whatever changes a model for a while. These
# decorators go well with its own, if the copies that it makes of a function are not decorated.
HARMLESS = {"contextmanager", "torch.no_grad()", "torch.inference_mode()"}
collected, skipped = mutmut.collect_source_file_mutation_data, file_mutation.MutationVisitor._skip_node_and_children
arranged = file_mutation.function_trampoline_arrangement


def is_plain(function):
    return {cst.Module([]).code_for_node(each.decorator) for each in function.decorators} <= HARMLESS


def skip(self, node):
    """Also the texts of errors."""
    if isinstance(node, cst.FunctionDef) and is_plain(node):
        node = node.with_changes(decorators=[])
    return isinstance(node, cst.Raise) or skipped(self, node)


def arrange(function, mutants, class_name):
    before, nodes, after, names = arranged(function, mutants, class_name)
    if is_plain(function):
        nodes = [nodes[0], *(node.with_changes(decorators=[]) for node in nodes[1:])]
    return before, nodes, after, names


def room(data):
    """metrics, mechanisms or statistics; a file of another folder is a room of its own."""
    folder, name = data.path.parts[-2:]
    return folder if folder in ("metrics", "mechanisms", "statistics") else f"{folder}/{name}"


def sample(per_room):
    """For each file its mutants in an order of chance, as many as it is to give."""
    (_, files), by_room = collected(mutant_names=()), defaultdict(list)
    for data in files.values():
        by_room[room(data)].append(data)
    for together in by_room.values():
        total = sum(len(data.exit_code_by_key) for data in together)
        for data in together:
            names = sorted(data.exit_code_by_key, key=lambda name: hashlib.sha256(name.encode()).digest())
            share = 1 if per_room == "all" else min(1, int(per_room) / max(1, total))
            yield data, names[: round(share * len(names))]


def main(per_room):
    def collect(*, mutant_names):
        """What mutmut is to test: of the sample what is not killed yet, by the quickest tests first."""
        seconds, tests = mutmut.state().duration_by_test, mutmut.state().tests_by_mangled_function_name
        tests.update({function: sorted(names, key=seconds.__getitem__) for function, names in tests.items()})
        chosen = list(sample(per_room))
        known = [(data, name, data.exit_code_by_key[name]) for data, names in chosen for name in names]
        mutants = [(*which, code if status_by_exit_code[code] in KILLED else None) for *which, code in known]
        return mutants, {str(data.path): data for data, _ in chosen}

    file_mutation.MutationVisitor._skip_node_and_children = skip
    file_mutation.function_trampoline_arrangement = arrange
    mutmut.collect_source_file_mutation_data = collect
    mutmut._run((), None)
    counts, living = defaultdict(lambda: [0, 0]), []
    for data, names in sample(per_room):
        for name in names:
            status = status_by_exit_code[data.exit_code_by_key[name]]
            counts[room(data)][0] += status in KILLED
            counts[room(data)][1] += 1
            living += [] if status in KILLED else [f"{status}: {name}"]
    sys.stdout.write("".join(line + "\n" for line in living))
    for name, (killed, tested) in counts.items():
        sys.stdout.write(f"{name:24} {killed} of {tested} killed, {killed / max(1, tested):.0%}\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [PER_ROOM]))
