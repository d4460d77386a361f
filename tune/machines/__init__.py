"""The machines of a sweep: facts of nodes, placement of trials, and memory estimates."""
