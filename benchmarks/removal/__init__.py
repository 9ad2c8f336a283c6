"""Removal of named rows: does leaving them out undo the shift?"""
