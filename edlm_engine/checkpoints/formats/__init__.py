"""One file for each layout that models are read from.

To add one: a file here with a class that has what `registry.Format` asks, and a line in
`registry.BUILT_IN`. A package elsewhere names its class under the entry points of
`registry.GROUP` instead.
"""
